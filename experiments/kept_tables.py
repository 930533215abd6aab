"""Tables of kept results: seeds that add up, and two experiments seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.kept_files import RUN_NAME, KeptResults, without_seeds
from lightning_modules.errors import UserError
from lightning_modules.evaluation.over_seeds import (
    SeedErrors,
    difference_over_seeds,
    estimate_over_seeds,
    smallest_shown,
)


def tabulate(
    kept: Sequence[KeptResults],
    baseline: str | None = None,
    against: str = "text",
    others: Sequence[KeptResults] = (),
    may_differ: bool = False,
    of_others: str | None = None,
) -> str:
    """Lay out several seeds of one experiment, with intervals over seeds and dialogues.

    Args:
        kept: One file per seed.
        baseline: Decoding that all are compared with; none if None.
        against: "text", the thinker's own, or "gold".
        others: Files of another experiment, of the same seeds in the same order; each decoding is compared with that
            of its name there.
        may_differ: Take files that differ in more than the seed, and tell below the table in which stages.
        of_others: Decoding of the others that all are compared with, in place of that of each name.

    Returns:
        A Markdown table, and below it what it is made from.

    Raises:
        UserError: If there is no file, two have one seed, they are of other variants, one lacks the baseline, or the
            others have other seeds or dialogues, or lack the decoding that is asked for.
    """
    _check_seeds(kept, may_differ)
    first = kept[0].decodings
    if baseline is not None and baseline not in first:
        raise UserError(f"there is no decoding {baseline!r}; choose among {', '.join(first)}")
    if others:
        _check_seeds(others, may_differ)
        seeds, other_seeds = ([one.content["seed"] for one in files] for files in (kept, others))
        if seeds != other_seeds:
            raise UserError(f"the files have the seeds {seeds}, the others {other_seeds}; give the same, in one order")
    if of_others is not None and (not others or of_others not in others[0].decodings):
        known = f"they have {', '.join(others[0].decodings)}" if others else "give --minus"
        raise UserError(f"there is no decoding {of_others!r} of others to compare with; {known}")
    titles = ["decoding", "steps", "rule", "WER % (95 %)", "by seed", "passes per block"]
    titles += [] if baseline is None else [f"minus {baseline}, points (95 %)"]
    titles += [f"minus the others'{f' {of_others}' if of_others else ''}, points (95 %)"] if others else []
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in first.items():
        own = [one.errors_of(name, against) for one in kept]
        by_seed = ", ".join(f"{100 * one.errors.sum() / max(1, one.words.sum()):.1f}" for one in own)
        passes = [one.decodings[name]["forwards_per_block"] for one in kept]
        mean = "-" if None in passes else f"{sum(passes) / len(passes):.1f}"
        cells = [name, row["steps"] or "-", row["rule"] or "-", estimate_over_seeds(own).in_percent(), by_seed, mean]
        if baseline is not None:
            is_other = name != baseline
            cells.append(_compare([one.errors_of(baseline, against) for one in kept], own) if is_other else "-")
        if others:
            other = of_others or name
            is_there = other in others[0].decodings
            cells.append(_compare([one.errors_of(other, against) for one in others], own) if is_there else "-")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    said = _describe(kept, against)
    if others:
        said += (
            f"; the others: variant {others[0].content['variant']}, from {', '.join(one.path.name for one in others)}"
        )
    return "\n".join([*lines, "", said])


def _check_seeds(kept: Sequence[KeptResults], may_differ: bool) -> None:
    """Refuse files that are not one per seed of one variant, or of one set of decodings."""
    if not kept:
        raise UserError("there is no file to make a table from; give at least one")
    seeds = [one.content["seed"] for one in kept]
    if len(set(seeds)) != len(seeds):
        raise UserError(f"the files have the seeds {seeds}; give one file per seed")
    for one in kept[1:]:
        is_other = one.content["variant"] != kept[0].content["variant"]
        if is_other and not may_differ:
            raise UserError(
                f"{one.path} and {kept[0].path} differ in more than the seed; make a table of each, or say --may-differ"
            )
        if one.decodings.keys() != kept[0].decodings.keys():
            raise UserError(f"{one.path} and {kept[0].path} have other decodings; make a table of each")


def _compare(baseline: Sequence[SeedErrors], own: Sequence[SeedErrors]) -> str:
    difference = difference_over_seeds(baseline, own)
    text = difference.in_percent(sign=True)
    return f"{text}: none shown, {100 * smallest_shown(difference):.1f} would be" if difference.includes_zero else text


def _describe(kept: Sequence[KeptResults], against: str) -> str:
    """Say what a table is made from."""
    dialogues = {tuple(one.content["dialogues"]) for one in kept}
    numbers = " or ".join(sorted({str(len(one)) for one in dialogues}))
    seeds = ", ".join(str(one.content["seed"]) for one in kept)
    code = ", ".join(sorted({_code(one.content["environment"]) for one in kept}))
    machines = "; ".join(sorted({_machine(one.content["environment"]) for one in kept}))
    reference = "the thinker's own text" if against == "text" else "the gold reply"
    shared = "the same for all" if len(dialogues) == 1 else "of each its own"
    over = f"seeds {seeds} and" if len(kept) > 1 else f"seed {seeds}, over"
    return (
        f"WER against {reference}, by {kept[0].content['normalizer']}; intervals over {over} {numbers} test dialogues"
        + (f", {shared}" if len(kept) > 1 else "")
        + "; a difference that is none shown would be shown in 4 of 5 repetitions if it were as large as told. "
        f"{_describe_seeds(kept)}{_describe_differences(kept)}Code: {code}; {machines}; variant "
        + ", ".join(dict.fromkeys(one.content["variant"] for one in kept))
        + "; from "
        + ", ".join(one.path.name for one in kept)
    )


def _describe_differences(kept: Sequence[KeptResults]) -> str:
    """Say in which stages files differ from the first one in more than the seed; nothing where they do not."""
    told = []
    first = without_seeds(kept[0].content["config"])
    for one in kept[1:]:
        own = without_seeds(one.content["config"])
        names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
        if names:
            told.append(
                f"Seed {one.content['seed']} differs from seed {kept[0].content['seed']} in {', '.join(names)}. "
            )
    return "".join(told)


def _code(environment: Mapping[str, Any]) -> str:
    """Name the code of a run: its commit, or the digest of its sources where there was no repository."""
    commit = environment["commit"]
    return f"commit {commit[:8]}" if commit else f"sources {str(environment.get('sources'))[:8]}"


def _describe_seeds(kept: Sequence[KeptResults]) -> str:
    """Say which stages all seeds share, and which are made again for each; nothing of one seed."""
    if len(kept) == 1:
        return ""
    runs: dict[str, set[str]] = {}
    for one in kept:
        for run in one.content["config"]:
            runs.setdefault(RUN_NAME.sub("", run), set()).add(run)
    runs.pop(kept[0].content["stage"], None)
    shared = ", ".join(name for name, own in runs.items() if len(own) == 1)
    varied = ", ".join(name for name, own in runs.items() if len(own) > 1)
    first = f"One run for all seeds: {shared}; made again for each: {varied}" if shared else "Each seed makes all again"
    too_small = 100 * (1 - ((len(kept) - 1) / len(kept)) ** 0.5)
    return f"{first}. The spread between {len(kept)} seeds is drawn {too_small:.0f} % too small. "


def _machine(environment: dict[str, Any]) -> str:
    gpus = ", ".join(environment.get("gpus") or ()) or "no GPU"
    return f"{environment.get('num_cpus')} cores, {gpus}, {environment.get('platform')}"
