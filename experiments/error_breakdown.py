"""The command line that tells where the word errors of a comparison sit: at which word, in which kind of reply."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from callbacks.comparison.page.run_files import locate  # noqa: E402
from datamodules.synthetic.espeak import EspeakSynthesizer, Voice  # noqa: E402
from datamodules.synthetic.expressive_speech import Phrase, groups_by_tempo, mean_tempo  # noqa: E402
from experiments.engine.artifacts import load_trained, read_config  # noqa: E402
from experiments.engine.configuration.errors import report_mistake  # noqa: E402
from experiments.transcripts import Records, read_records  # noqa: E402
from lightning_modules.errors import UserError  # noqa: E402
from lightning_modules.evaluation.error_breakdown import (  # noqa: E402
    ErrorBreakdown,
    errors_by_kind,
    errors_by_label,
    errors_by_position,
    errors_by_position_from_end,
)
from lightning_modules.evaluation.text_normalization import normalize_text  # noqa: E402
from lightning_modules.evaluation.word_lags import word_lags  # noqa: E402
from lightning_modules.talker.anchored import AnchoredTalker  # noqa: E402

START, END, KIND, LAG, TEMPO = "start", "end", "kind", "lag", "tempo"
NUM_TEMPO_GROUPS = 4
TITLES = {
    START: "by word, from the first (0)",
    END: "by word, from the last (0)",
    KIND: "by kind of query",
    LAG: "by blocks between a word's anchor and its speech",
    TEMPO: "by quarter of the replies, by drawn tempo",
}


def read_plan(run: Path) -> dict[str, dict[str, Any]]:
    """Read what was planned for each dialogue of the synthetic corpus that a comparison answered, by its id.

    Raises:
        FileNotFoundError: If its corpus is none of ours.
    """
    corpus = read_config(run).get("inputs", {}).get("corpus")
    for plan in sorted(locate(corpus, run).glob("*/plan.json")) if corpus else ():
        return {task["id"]: task for task in json.loads(plan.read_text(encoding="utf-8"))}
    raise FileNotFoundError(f"{run}: its corpus ({corpus}) has no plan.json; kinds and lags need a synthetic corpus")


def lags_of(run: Path, plan: Mapping[str, Mapping[str, Any]], records: Records) -> list[list[int | None]]:
    """Give the lag of each word of the replies: from eSpeak, the tokenizer and the blocks of the run's talkers.

    Raises:
        UserError: If the talkers have no anchors.
    """
    llm = load_trained(run)
    talker = next((one for one in llm.talkers.values() if isinstance(one, AnchoredTalker)), None)
    if talker is None:
        raise UserError(f"{run} has no talker with anchors; a lag is that between anchor and speech")
    block_s = talker.block_size / llm.vocoder.frame_rate_hz
    synthesizer, tokenizer = EspeakSynthesizer(), llm.thinker.prompt.tokenizer
    lags: list[list[int | None]] = []
    for record in records:
        if record["text"] != record["gold"]:  # nobody has spoken what the thinker made up
            lags.append([None] * len(normalize_text(record["text"]).split()))
            continue
        spans = tokenizer(record["text"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        task = plan[record["id"]]
        starts = synthesizer.word_starts(record["gold"], Voice(**task["reply_voice"]), phrases_of(task))
        lags.append(word_lags(record["text"], spans, starts, talker.anchors.anchors_per_block, block_s))
    return lags


def phrases_of(task: Mapping[str, Any]) -> list[Phrase]:
    """Give the phrases of a planned reply; none if it is not expressive."""
    return [Phrase(**phrase) for phrase in task.get("phrases", ())]


def tempos_of(plan: Mapping[str, Mapping[str, Any]], records: Records) -> list[str]:
    """Give the quarter that each reply belongs to, from slow to fast, with the tempos of that quarter.

    Raises:
        UserError: If the replies are not expressive.
    """
    phrases = [phrases_of(plan[record["id"]]) for record in records]
    if not all(phrases):
        raise UserError("the replies of this corpus draw no tempo; give a comparison on an expressive one")
    groups = groups_by_tempo([mean_tempo(own) for own in phrases], NUM_TEMPO_GROUPS)
    names = {member: f"{number}: {tempos}" for number, (own, tempos) in enumerate(groups, start=1) for member in own}
    return [names[member] for member in range(len(records))]


def break_down(run: Path, by: str, decodings: Sequence[str] = ()) -> dict[str, ErrorBreakdown]:
    """Group the errors of each decoding, against the thinker's own text.

    Args:
        run: The directory of a stage that ended with a comparison.
        by: One of "start", "end", "kind", "lag" and "tempo".
        decodings: Their names; all if there is none.

    Returns:
        A breakdown for each decoding.
    """
    records = read_records(run, decodings)
    pairs = {name: [(one["text"], one["heard"]) for one in own] for name, own in records.items()}
    if by == START:
        return {name: errors_by_position(own) for name, own in pairs.items()}
    if by == END:
        return {name: errors_by_position_from_end(own) for name, own in pairs.items()}
    plan = read_plan(run)
    if by == KIND:
        kinds = {name: [plan[one["id"]]["dialogue"]["intent"] for one in own] for name, own in records.items()}
        return {name: errors_by_kind(pairs[name], kinds[name]) for name in records}
    if by == TEMPO:
        return {name: errors_by_kind(pairs[name], tempos_of(plan, own)) for name, own in records.items()}
    return {name: errors_by_label(pairs[name], lags_of(run, plan, own)) for name, own in records.items()}


def lay_out(found: Mapping[str, ErrorBreakdown], by: str, intervals: bool) -> str:
    """Lay breakdowns out as a table, a column for each group."""
    keys: list[Hashable] = []
    for one in found.values():
        keys += [group.key for group in one.groups if group.key not in keys]
    lines = [f"| errors per 100 words, {TITLES[by]} | {' | '.join(map(str, keys))} |", "|---" * (len(keys) + 1) + "|"]
    first = {group.key: group for group in next(iter(found.values())).groups}
    lines.append(f"| words | {' | '.join(str(first[key].num_words) if key in first else '-' for key in keys)} |")
    for name, one in found.items():
        rates = {group.key: group.rate for group in one.groups}
        cells = [
            (rates[key].in_percent() if intervals else f"{100 * rates[key].value:.1f}") for key in keys if key in rates
        ]
        outside = f" ({one.num_errors_outside} errors elsewhere)" if one.num_errors_outside else ""
        lines.append(f"| {name}{outside} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code: 0 done, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(prog="error_breakdown.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a comparison")
    parser.add_argument("decodings", nargs="*", metavar="DECODING", help="its decodings; all if none is named")
    parser.add_argument(
        "--by", choices=tuple(TITLES), action="append", help="may be given again; start and end if left out"
    )
    parser.add_argument("--intervals", action="store_true", help="with 95 %% intervals over dialogues")
    try:
        parsed = parser.parse_args(arguments)
        tables = [
            lay_out(break_down(parsed.run, by, parsed.decodings), by, parsed.intervals)
            for by in parsed.by or (START, END)
        ]
        print("\n\n".join(tables))
    except Exception as error:
        return report_mistake(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
