"""The dialogues of the page: what was said, how it sounds, and how each block came to be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from callbacks.comparison.page.groups import Experiment
from callbacks.comparison.page.media import load_media
from callbacks.comparison.page.run_files import ComparedRun, Json
from lightning_modules.evaluation.word_alignment import align_words

Described = dict[str, Any]


@dataclass(frozen=True)
class KeptDialogue:
    """A dialogue with audio.

    Attributes:
        samples: Of each run that kept it, what its `samples.json` says of it.
        chosen: Why it was kept: "random", "worst", or both.
    """

    samples: list[tuple[Experiment, ComparedRun, Json]]
    chosen: list[str]


def order_dialogues(experiments: Sequence[Experiment]) -> list[KeptDialogue]:
    """Give the dialogues as the page shows them: the worst one, one drawn at random, the next worst, and so on.

    The same dialogue of several runs is one, so that their replies stand below each other.

    Args:
        experiments: What is compared.

    Returns:
        The dialogues, whose audio is not read yet.
    """
    found: dict[tuple[str, str], list[tuple[Experiment, ComparedRun, Json]]] = {}
    reasons: dict[tuple[str, str], dict[str, float]] = {}
    for experiment in experiments:
        for run in experiment.runs:
            for sample in run.samples:
                key = sample["id"], sample["gold"]
                reasons.setdefault(key, {})[sample["chosen"]] = sample["word_error_rate"]
                if not any(other is run for _, other, _ in found.setdefault(key, [])):
                    found[key].append((experiment, run, sample))
    worst = sorted((key for key in found if "worst" in reasons[key]), key=lambda key: -reasons[key]["worst"])
    drawn = [key for key in found if "worst" not in reasons[key]]
    return [KeptDialogue(found[key], sorted(reasons[key])) for key in _in_turn(worst, drawn)]


def _in_turn(first: list[Any], second: list[Any]) -> list[Any]:
    longest = max(len(first), len(second))
    return [one for index in range(longest) for one in (*first[index : index + 1], *second[index : index + 1])]


def describe_dialogue(dialogue: KeptDialogue) -> Described:
    """Give what the page shows of a dialogue, audio and pictures included."""
    _, first_run, first = dialogue.samples[0]
    replies = []
    for experiment, run, sample in dialogue.samples:
        for reply in sample["replies"]:
            if reply.get("talker") is None and run is not first_run:
                continue  # references speak the gold reply, whatever the run
            seed = f", seed {run.seed}" if len(experiment.runs) > 1 else ""
            replies.append({"run": f"{experiment.label}{seed}", **_describe_reply(reply, sample, run)})
    query = None if first["query"] is None else load_media(first_run.folder / first["query"])._asdict()
    shown = {key: first[key] for key in ("id", "kind", "transcript", "gold")}
    errors = max(sample["word_error_rate"] for _, _, sample in dialogue.samples)
    return {**shown, "chosen": dialogue.chosen, "word_error_rate": errors, "query": query, "replies": replies}


def _describe_reply(reply: Json, sample: Json, run: ComparedRun) -> Described:
    described: Described = {
        "name": reply["name"],
        "talker": reply.get("talker"),
        "media": None if reply["audio"] is None else load_media(run.folder / reply["audio"])._asdict(),
        "words": [asdict(piece) for piece in align_words(reply["text"], reply["heard"])],
        "is_gold": reply["text"].strip() == sample["gold"].strip(),
        "text": reply["text"],
    }
    if reply.get("talker") is not None:
        described["chunk_s"] = reply["block_size"] / sample["token_rate_hz"]
        described["film"] = film_of(reply)
        described["first_chunk_ms"] = None if reply["first_chunk_ms"] is None else reply["first_chunk_ms"]["total"]
    return described


def film_of(reply: Json) -> list[Json]:
    """Give the blocks of a reply as they were filled.

    Args:
        reply: Of `samples.json`.

    Returns:
        For each block its ``tokens``; the ``order``, the step that revealed each, from 0; the number of ``steps``; the
        number of ``passes`` of the network; and ``draft``, what stood at each place before a step corrected it, None
        where no step did.
    """
    tokens, size = reply["tokens"], reply["block_size"]
    order, draft = reply["order"], reply["draft"]
    if not order:
        # One after the other, or several at once, from the first on.
        order = [(place % size) * (reply["steps"] or size) // size for place in range(len(tokens))]
    blocks = []
    for number, start in enumerate(range(0, len(tokens), size)):
        end = start + size
        own, own_order = tokens[start:end], order[start:end]
        before = draft[start:end] if draft else own
        blocks.append(
            {
                "tokens": own,
                "order": own_order,
                "steps": max(own_order) + 1,
                "passes": reply["passes"][number],
                "draft": [old if old != new else None for old, new in zip(before, own, strict=True)],
            }
        )
    return blocks
