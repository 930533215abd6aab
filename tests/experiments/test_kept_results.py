"""Kept results: small files of finished comparisons, from which tables are made, of any number of seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.engine.runs import write_config, write_json
from experiments.kept_files import keep, read
from experiments.kept_results import main
from experiments.kept_tables import tabulate
from lightning_modules.errors import UserError

GOLD = ["one two three four", "one two", "one two three four"]


def write_run(
    root: Path, seed: int, heard: list[str], learning_rate: float = 0.1, names: str = "x", codec_seed: int = 7
) -> Path:
    """Write what a codec, a training and a comparison leave."""
    digits, codec = f"{seed:08d}", root / f"codec-{codec_seed:08d}"
    write_config(codec / "config.yaml", {"name": "codec", "seed": codec_seed})
    training, run = root / f"talkers-{digits}", root / f"comparison-{digits}"
    write_config(
        training / "config.yaml",
        {"name": "talkers", "seed": seed, "inputs": {"codec": str(codec)}, "module": {"rate": learning_rate}},
    )
    write_json(training / "environment.json", {"commit": "c0ffee00" * 5})
    loaded = {"run": str(training), "attribute": "talkers.mdm"}
    config = {
        "name": "comparison",
        "seed": seed,
        "inputs": {"talkers": str(training)},
        "module": {"seed": seed, **loaded},
    }
    write_config(run / "config.yaml", {**config, "fingerprint": digits})
    write_json(run / "environment.json", {"commit": "abcdef12" * 5, "num_cpus": 2, "gpus": [], "platform": "Linux"})
    write_json(run / "finished.json", {"fingerprint": digits})
    rows = [{"name": "ntp", "talker": "ntp", "steps": 16, "rule": "", "forwards_per_block": 16.0}]
    rows.append(
        {"name": "mdm_4", "talker": "mdm", "steps": 4, "rule": "threshold 0.7", "forwards_per_block": 3.0 + seed}
    )
    spoken = {"ntp": GOLD, "mdm_4": heard}
    records = [
        {"id": f"{names}{i}", "decoding": row["name"], "gold": gold, "text": gold, "heard": spoken[row["name"]][i]}
        for row in rows
        for i, gold in enumerate(GOLD)
    ]
    (run / "results.json").write_text(json.dumps(rows))
    (run / "transcripts.json").write_text(json.dumps(records))
    return run


def test_a_run_is_kept_small_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "quickstart", 1, ["one two three", "one too", "one two three four"])
    assert main(["keep", str(run), "--into", str(tmp_path / "results")]) == 0
    file = tmp_path / "results" / "quickstart-comparison-seed1-00000001.json"
    assert capsys.readouterr().out == f"kept {file}\n" and file.stat().st_size < 4_000
    kept = read(file)
    errors = kept.errors_of("mdm_4", "text")
    assert (errors.dialogues, errors.errors.tolist(), errors.words.tolist()) == (
        ("x0", "x1", "x2"),
        [1, 1, 0],
        [4, 2, 4],
    )
    assert kept.content["environment"]["commit"].startswith("abcdef12")
    assert kept.content["commits"]["talkers-00000001"].startswith("c0ffee00")
    assert kept.content["config"]["talkers-00000001"]["module"] == {"rate": 0.1}
    assert '"errors": [1,1,0]' in file.read_text()


def test_what_was_chosen_for_talkers_is_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, GOLD)
    write_json(tmp_path / "talkers-00000001" / "choice.json", {"talkers": {"ntp": {"learning_rate": 0.1}}})
    kept = read(keep(run, tmp_path / "results"))
    assert kept.content["choices"] == {"talkers-00000001": {"talkers": {"ntp": {"learning_rate": 0.1}}}}


def test_seeds_add_up_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [["one two three", "one two", "one two three four"], ["one two three", "", "one two three four"]]
    files = [keep(write_run(tmp_path, seed, heard), tmp_path) for seed, heard in enumerate(wrong, start=1)]
    assert main(["table", *map(str, files), "--baseline", "ntp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| WER % (95 %) | by seed | passes per block | minus ntp, points (95 %) |")
    assert lines[2] == "| ntp | 16 | - | 0.0 (0.0 to 0.0) | 0.0, 0.0 | 16.0 | - |"
    assert lines[3].startswith("| mdm_4 | 4 | threshold 0.7 | 20.0 (") and "| 10.0, 30.0 | 4.5 | +20.0 (" in lines[3]
    said = lines[-1]
    assert (
        "over seeds 1, 2 and 3 test dialogues, the same for all" in said
        and "Code: commit abcdef12; 2 cores, no GPU" in said
    )
    assert (
        "One run for all seeds: codec; made again for each: talkers. The spread between 2 seeds is drawn 29 %" in said
    )
    other = keep(write_run(tmp_path, 3, wrong[0], codec_seed=8), tmp_path)
    assert "Each seed makes all again. The spread" in tabulate([read(files[0]), read(other)])
    one = tabulate([read(files[0])], "ntp")
    assert "for all seeds" not in one and "drawn" not in one
    assert "none shown" in one and "over seed 1, over 3 test dialogues" in one
    own = keep(write_run(tmp_path / "own", 4, wrong[0], names="y"), tmp_path)
    assert "of each its own" in tabulate([read(files[0]), read(own)])


def test_two_experiments_are_compared_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse, better = ["one two three", "one", "one two three four"], ["one two three four", "one", "one two three four"]
    before = [keep(write_run(tmp_path / "a", seed, worse, 0.2), tmp_path / "before") for seed in (1, 2)]
    after = [keep(write_run(tmp_path / "b", seed, better), tmp_path / "after") for seed in (1, 2)]
    assert main(["table", *map(str, after), "--minus", *map(str, before)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| passes per block | minus the others', points (95 %) |")
    assert "| +0.0 (+0.0 to +0.0): none shown, 0.0 would be |" in lines[2], "NTP is the same in both"
    assert "| 10.0, 10.0 | 4.5 | -10.0 (" in lines[3]
    assert (
        f"the others: variant {read(before[0]).content['variant']}, from {before[0].name}, {before[1].name}"
        in lines[-1]
    )
    assert main(["table", *map(str, after), "--minus", str(before[0])]) == 2
    assert "the files have the seeds [1, 2], the others [1]" in capsys.readouterr().err


def test_all_rows_are_compared_with_one_of_another_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse, better = ["one two three", "one", "one two three four"], ["one two three four", "one", "one two three four"]
    before, after = (
        keep(write_run(tmp_path / name, 1, said), tmp_path / name)
        for name, said in (("before", worse), ("after", better))
    )
    assert main(["table", str(after), "--minus", str(before), "--of-others", "mdm_4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| minus the others' mdm_4, points (95 %) |")
    assert "-20.0 (" in lines[2] and "-10.0 (" in lines[3]
    for wrong, said in (
        (["--minus", str(before), "--of-others", "nobody"], "they have"),
        (["--of-others", "mdm_4"], "give --minus"),
    ):
        assert main(["table", str(after), *wrong]) == 2
        assert said in capsys.readouterr().err


def test_seeds_of_other_settings_make_a_table_that_tells_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = keep(write_run(tmp_path / "a", 1, GOLD), tmp_path)
    other = keep(write_run(tmp_path / "b", 2, GOLD, learning_rate=0.2), tmp_path)
    assert main(["table", str(first), str(other), "--may-differ"]) == 0
    variants = ", ".join(str(json.loads(file.read_text())["variant"]) for file in (first, other))
    said = capsys.readouterr().out
    assert "Seed 2 differs from seed 1 in talkers. " in said and f"variant {variants}; from" in said
    assert "differs" not in tabulate([read(first)], None, "text", may_differ=True)


def test_what_does_not_add_up_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = keep(write_run(tmp_path / "a", 1, GOLD), tmp_path)
    other = keep(write_run(tmp_path / "b", 2, GOLD, learning_rate=0.2), tmp_path)
    run = write_run(tmp_path / "c", 4, GOLD)
    mistakes: list[tuple[list[Any], str]] = [
        (["table", first, first], "the files have the seeds [1, 1]"),
        (["table", first, other], "differ in more than the seed"),
        (["table", first, "--baseline", "mtp"], "there is no decoding 'mtp'; choose among ntp, mdm_4"),
        (["table", tmp_path / "none.json"], "no such file; keep a run first"),
        (["table", run / "results.json"], "holds no kept results"),
        (["keep", tmp_path], "has no transcripts.json"),
    ]
    for words, message in mistakes:
        assert main([str(word) for word in words]) == 2
        assert message in capsys.readouterr().err
    records = json.loads((run / "transcripts.json").read_text())
    (run / "transcripts.json").write_text(json.dumps(records[:-1]))
    with pytest.raises(UserError, match="mdm_4 and ntp answered other dialogues"):
        keep(run, tmp_path)
    (tmp_path / "old.json").write_text('{"format_version": 0}')
    with pytest.raises(UserError, match="format 0, this code reads 1"):
        read(tmp_path / "old.json")


def test_code_without_a_commit_is_named_by_its_sources(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, ["one two three", "one two", "one two three four"])
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    write_json(run / "environment.json", {**environment, "commit": None, "sources": "feedbeef" * 8})
    assert "Code: sources feedbeef; 2 cores" in tabulate([read(keep(run, tmp_path))])


def test_what_seeds_name_makes_no_other_variant(tmp_path: Path) -> None:
    """A run of before a stage had a group of seeds adds up with one of after."""
    files = []
    for seed, group in ((1, None), (2, "talkers")):
        run = write_run(tmp_path, seed, ["one two three", "one two", "one two three four"])
        config = OmegaConf.load(run / "config.yaml")
        config.seed_group = group
        OmegaConf.save(config, run / "config.yaml")
        files.append(keep(run, tmp_path))
    assert "intervals over seeds 1, 2" in tabulate([read(file) for file in files])
