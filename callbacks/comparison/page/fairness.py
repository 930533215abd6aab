"""The box that says what is compared, and what is equal and what is not."""

from collections.abc import Iterable, Sequence
from typing import Any

from callbacks.comparison.page.groups import Experiment, label_of
from callbacks.comparison.page.lineage import TrainingStage, name_commit, name_machine, trace
from callbacks.comparison.page.run_files import ComparedRun, Json

NOT_RECORDED = "not recorded"


def describe_fairness(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Lay out what is known of each talker and of each test.

    Args:
        experiments: What is compared.

    Returns:
        ``talkers`` and ``tests``, two tables with ``columns`` and ``rows``; a row has a ``title``, ``values``, and
        whether they are ``equal``.
    """
    talkers = [(experiment, name) for experiment in experiments for name in experiment.runs[0].system["talkers"]]
    facts = [_facts_of_talker(experiment.runs, name) for experiment, name in talkers]
    names = [label_of(experiments, *one) for one in talkers]
    tests = [_facts_of_test(experiment) for experiment in experiments]
    return {
        "talkers": {"columns": names, "rows": _rows(facts)},
        "tests": {"columns": [experiment.label for experiment in experiments], "rows": _rows(tests)},
    }


def _rows(columns: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    titles = list(dict.fromkeys(title for column in columns for title in column))
    rows = []
    for title in titles:
        values = [column.get(title, NOT_RECORDED) for column in columns]
        rows.append({"title": title, "values": values, "equal": len(set(values)) == 1})
    return rows


def _facts_of_talker(runs: Sequence[ComparedRun], name: str) -> dict[str, str]:
    described = runs[0].system["talkers"][name]
    block_s = described["block_size"] / runs[0].system["token_rate_hz"]
    traces = [trace(run.folder, name) for run in runs]
    stages = traces[0]
    facts = {
        "class": described["kind"],
        "parameters": f"{described['num_parameters']:,}",
        "block": f"{described['block_size']} tokens, {block_s:.2f} s",
        "text it sees": described["text_view"],
    }
    if not stages:
        return facts
    seen = [one.num_steps * one.batch_size for one in stages if one.num_steps and one.batch_size]
    everyone = [stage for stages in traces for stage in stages]
    return {
        **facts,
        "trained in": _chain(stages, lambda one: one.run.rsplit("-", 1)[0]),
        "steps": _sum(_chain(stages, lambda one: one.num_steps), [one.num_steps for one in stages]),
        "dialogues per step": _chain(stages, lambda one: one.batch_size),
        "dialogues seen": f"{sum(seen):,}" if len(seen) == len(stages) else NOT_RECORDED,
        "learning rate": _chain(stages, lambda one: one.learning_rate),
        "data": _distinct(_data(stage) for stage in stages),
        "precision": _distinct(stage.precision for stage in stages),
        "seconds, with all in the same run": _chain(stages, lambda one: one.seconds),
        "machine": _distinct(stage.machine for stage in everyone),
        "commit": _distinct(stage.commit for stage in everyone),
    }


def _facts_of_test(experiment: Experiment) -> dict[str, str]:
    runs, system = experiment.runs, experiment.runs[0].system
    counts = sorted({row["num_examples"] for run in runs for row in run.rows.values()})
    data = ((runs[0].config.get("datamodule") or {}).get("init_args") or {}).get("root")
    return {
        "run": _distinct(str(run.folder) for run in runs),
        "seed": experiment.seeds,
        "test queries": " or ".join(map(str, counts)),
        "corpus": str(data).rsplit("/", 1)[-1] if data else NOT_RECORDED,
        "thinker": _part(system["thinker"]),
        "vocoder": f"{system['vocoder']['kind']}, {system['vocoder']['sample_rate_hz']:,} Hz",
        "speech tokens": f"{system['token_rate_hz']:g} per second",
        "text normaliser": next(iter(runs[0].rows.values()))["normalizer"],
        "device": f"{system['num_devices']} x {system['device']}, {system['num_threads']} threads",
        "precision": system["precision"],
        "machine": _distinct(name_machine(run.environment) for run in runs),
        "platform": _distinct(run.environment.get("platform") for run in runs),
        "commit": _distinct(name_commit(run.environment) for run in runs),
        "command": _distinct(run.environment.get("command") for run in runs),
    }


def _part(part: Json) -> str:
    return f"{part['kind']}, {part['num_parameters']:,} parameters"


def _data(stage: TrainingStage) -> str | None:
    if stage.corpus is None:
        return None
    return stage.corpus + (f", {stage.num_dialogues:,} dialogues" if stage.num_dialogues else "")


def _chain(stages: Sequence[TrainingStage], of: Any) -> str:
    """Write down a value of each stage, the first one first."""
    return " → ".join(NOT_RECORDED if of(one) is None else f"{of(one)}" for one in stages)


def _sum(chain: str, numbers: Sequence[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{chain} = {sum(known):,}" if len(known) == len(numbers) > 1 else chain


def _distinct(values: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or NOT_RECORDED
