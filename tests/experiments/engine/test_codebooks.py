"""The size of a codebook that is left out is that of the codec of a stage's speech tokens; a given one is checked."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.engine.configuration.errors import ConfigError
from experiments.engine.plan import Plan, make_plan
from lightning_modules.speech_codec import SpeechCodec
from lightning_modules.token_format import TokenFormat

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
TALKERS = ("first_talker", "talkers", "distilled_talkers")
# What reads the codes has one input for each of their coordinates.
LEVELS = (
    "stages.codec.module.init_args.levels=[8, 6, 5]",
    "stages.codec.module.init_args.text_reading.init_args.num_coordinates=3",
)
SIZE = "module.init_args.talkers.{}.init_args.num_codes={}"


def quickstart(folder: Path, *overrides: str, check: bool = False) -> Plan:
    return make_plan(EXPERIMENTS / "quickstart.yaml", [*overrides, f"runs_dir={folder}"], check)


def sizes(plan: Plan) -> dict[str, set[int]]:
    found = {}
    for planned in plan.stages:
        talkers = ((planned.config["module"] or {}).get("init_args") or {}).get("talkers") or {}
        own = {one["init_args"]["num_codes"] for one in talkers.values() if one and "anchors" in one["init_args"]}
        found |= {planned.stage.name: own} if own else {}
    return found


def speech_tokens_of(folder: Path, num_codes: int, name: str = "speech_tokens") -> str:
    """Write the record of a codec beside no tokens."""
    (folder / name).mkdir()
    record = TokenFormat(name, num_codes, 50, 24_000).as_record()
    (folder / name / "codec.json").write_text(json.dumps(record))
    return f"inputs.{name}={folder / name}"


def inputs(folder: Path) -> list[str]:
    (folder / "empty").mkdir(exist_ok=True)
    thinker = {"class_path": "tests.experiments.engine.test_codebooks.make_thinker"}
    (folder / "thinker").mkdir(exist_ok=True)
    module = {"class_path": "lightning_modules.speech_llm.SpeechLLM", "init_args": {"thinker": thinker}}
    OmegaConf.save({"module": module, "fingerprint": "0" * 16}, folder / "thinker" / "config.yaml")
    return [f"inputs.thinker={folder}/thinker", f"inputs.corpus={folder}/empty", f"inputs.text_states={folder}/empty"]


def make_thinker() -> Any:
    from tests.lightning_modules.test_speech_llm import make_thinker as make

    return make()


def test_talkers_follow_a_codec_that_is_still_to_be_trained(tmp_path: Path) -> None:
    assert sizes(quickstart(tmp_path)) == dict.fromkeys(TALKERS, {1000})
    plan = quickstart(tmp_path, *LEVELS, check=True)
    assert sizes(plan) == dict.fromkeys(TALKERS, {240})
    assert [path for planned in plan.stages for path in planned.unchecked] == []


def test_a_run_is_the_same_whether_its_size_is_given_or_left_out(tmp_path: Path) -> None:
    left_out, given = quickstart(tmp_path), quickstart(tmp_path, "stages.first_talker." + SIZE.format("first", 1000))
    assert [one.run for one in left_out.stages] == [one.run for one in given.stages]


def test_a_given_size_is_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^stages.talkers.module.*mtp.init_args.num_codes: 999 is not the size"
    ) as error:
        quickstart(tmp_path, "stages.talkers." + SIZE.format("mtp", 999))
    assert "inputs.speech_tokens: 1000" in str(error.value) and "set it to 1000, or leave it out" in str(error.value)


def test_shards_have_the_codec_of_the_tokens_that_they_are_converted_from(tmp_path: Path) -> None:
    plan = make_plan(
        EXPERIMENTS / "streaming.yaml",
        [f"runs_dir={tmp_path}", *LEVELS],
        check=False,
    )
    assert sizes(plan) == {"first_talker": {240}, "streamed_talkers": {240}}


def test_the_record_beside_tokens_tells_the_size(tmp_path: Path) -> None:
    record = speech_tokens_of(tmp_path, 65_536)
    plan = make_plan(EXPERIMENTS / "stages" / "first_talker.yaml", [*inputs(tmp_path), record])
    assert sizes(plan) == {"first_talker": {65_536}}


def test_without_a_codec_the_size_is_asked_for(tmp_path: Path) -> None:
    file = EXPERIMENTS / "stages" / "first_talker.yaml"
    unknown = [*inputs(tmp_path), f"inputs.speech_tokens={tmp_path}/empty", f"runs_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"^module.*first.init_args.num_codes: .* no input tells the codec; give it"):
        make_plan(file, unknown)
    assert sizes(make_plan(file, [*unknown, SIZE.format("first", 240)])) == {"first_talker": {240}}
    with pytest.raises(ConfigError, match="no input tells the codec"):  # also where nothing else is checked
        make_plan(file, unknown, check=False)


def test_inputs_of_two_codecs_are_told(tmp_path: Path) -> None:
    records = [speech_tokens_of(tmp_path, 1000), speech_tokens_of(tmp_path, 240, "other")]
    file = EXPERIMENTS / "stages" / "first_talker.yaml"
    with pytest.raises(ConfigError, match=r"different sizes \(inputs.*speech_tokens: 1000.*; give it") as error:
        make_plan(file, [*inputs(tmp_path), *records])
    assert "inputs.other: 240" in str(error.value)


def test_a_mistake_in_the_codec_is_told_as_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^stages.codec.module.*levels"):
        quickstart(tmp_path, "stages.codec.module.init_args.levels=[1]", check=True)


def test_a_vocoder_of_another_codec_is_told_before_the_talkers_have_trained(tmp_path: Path) -> None:
    """Of as many codes, at another rate: a run of NeuCodec's kind, say, in place of the codec of the tokens."""
    other = {"class_path": f"{__name__}.CodecOfAnotherRate"}
    (tmp_path / "other").mkdir()
    OmegaConf.save({"module": other, "fingerprint": "0" * 16}, tmp_path / "other" / "config.yaml")
    told = (
        r"^stages.comparison: the vocoder and the corpus .* tokens of different codecs: .*sample_rate 24000 and 16000"
    )
    with pytest.raises(ConfigError, match=told):
        quickstart(tmp_path, f"stages.comparison.inputs.codec={tmp_path}/other", check=True)


class CodecOfAnotherRate(SpeechCodec):
    @property
    def token_format(self) -> TokenFormat:
        return TokenFormat("embedded", self.codebook_size, self.frame_rate_hz, 24_000)
