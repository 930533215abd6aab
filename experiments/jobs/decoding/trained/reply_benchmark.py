"""A job that measures how fast the trained talkers of a comparison speak, under each way to run them."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from datamodules.formats.atomic_files import write_json, write_text
from experiments.jobs.decoding.executions import Execution
from experiments.jobs.decoding.machine import check_clock, describe_conditions, find_device
from experiments.jobs.decoding.plan import select
from experiments.jobs.decoding.replies import Reply
from experiments.jobs.decoding.report.tables import reply_introduction, reply_table
from experiments.jobs.decoding.statistics import order_of_turn
from experiments.jobs.decoding.trained.spoken_cases import SpokenCase, drop_silent, figures_of_case
from experiments.jobs.decoding.trained.written_texts import WrittenText, read_comparison, write_texts
from experiments.jobs.speaking.speaking_model import SpeakingModel, load_speaking_model
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least
from lightning_modules.talker.decoding.decoding import Decoding

# By decoding and execution.
Cases = dict[tuple[str, str], SpokenCase]


class ReplyBenchmark:
    """Speaks what a thinker wrote to test queries with every decoding under every execution in turn, and times it.

    The thinker writes each text once. Programs, graphs and packed weights are prepared once; neither that is timed, nor
    the first two replies of each case, which warm it up. Replies are as long as talkers make them: they say EOS, which
    is banned in the benchmark of replies of fixed length.

    Args:
        run: A comparison.
        executions: Ways to run decodings by name; the first one is what others are held against. None leaves one out.
        only_decodings: Names of the comparison's decodings; all if None. The first one is what others are held against.
        only_executions: Names of executions; all if None.
        num_queries: Test queries, from the first on, at most.
        clock: "wall", or "process" for the seconds that this process computes: for one thread of a shared CPU.
        precision: Of passes, "32-true" or "bf16-mixed"; that of the comparison if None.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        UserError: If a number is out of range, or a name is unknown.
    """

    def __init__(
        self,
        run: Path,
        executions: dict[str, Execution | None],
        only_decodings: Sequence[str] | None = None,
        only_executions: Sequence[str] | None = None,
        num_queries: int = 24,
        clock: str = "wall",
        precision: str | None = None,
        device: str = "auto",
    ) -> None:
        require_at_least(1, num_queries=num_queries)
        self.device = find_device(device)
        check_clock(clock, self.device)
        self.executions = select("executions", executions, only_executions)
        if not self.executions:
            raise UserError("executions: give at least one, by name")
        self.from_run, self.only_decodings = Path(run), only_decodings
        self.num_queries, self.clock, self.precision = num_queries, clock, precision

    @torch.no_grad()
    def run(self, output_dir: Path) -> dict[str, float]:
        """Write ``results.json``, ``results.md`` and ``summary.txt``.

        Args:
            output_dir: The run directory.

        Returns:
            The median of the tokens per second of each case.

        Raises:
            FileNotFoundError: If there is no run.
            UserError: If it is no comparison, has no decoding of a name, or nothing can be spoken.
        """
        folder, start_s, load_before = Path(output_dir), time.perf_counter(), os.getloadavg()[0]
        source, config = read_comparison(self.from_run)
        names = list(select("decodings", config["module"]["init_args"]["decodings"], self.only_decodings))
        model = load_speaking_model(source)
        model.llm.to(self.device)
        decodings = {name: model.decodings[name] for name in names}
        with model.in_precision(self.precision):
            is_lower = torch.is_autocast_enabled(self.device.type)
            adapters = dict.fromkeys(one.adapter for one in decodings.values())
            texts = write_texts(model, config, self.num_queries, adapters)
            cases, left_out = self._prepare(model, decodings, texts)
            self._speak(model, cases, texts)
        about = {
            **describe_conditions(self.device, self.clock, load_before, start_s),
            "dtype": "bfloat16 by autocast" if is_lower else "float32",
            "run": str(source),
            "num_silent": drop_silent(list(cases.values())),
        }
        about["num_queries"] = len(texts) - about["num_silent"]
        reference, baseline = next(iter(self.executions)), names[0]
        figures = {one.name: figures_of_case(one, cases, reference, baseline) for one in cases.values()}
        queries = [{"id": one.query_id, "text": one.text} for one in texts]
        measured = {"about": about, "left_out": left_out, "queries": queries, "cases": figures}
        write_json(folder / "results.json", measured)
        table = reply_table(list(figures.values()), baseline, reference)
        for name in ("results.md", "summary.txt"):
            write_text(folder / name, f"{table}\n{reply_introduction(about, left_out)}")
        return {f"{name}/tokens_per_s": one["tokens_per_s"].median for name, one in figures.items()}

    def _prepare(
        self, model: SpeakingModel, decodings: Mapping[str, Decoding], texts: Sequence[WrittenText]
    ) -> tuple[Cases, dict[str, list[str]]]:
        """Prepare and warm up each case; give also the decodings that each execution does not know, which is told."""
        cases: Cases = {}
        left_out: dict[str, list[str]] = {}
        round_s = 0.0
        wanted = [(name, execution) for name in decodings for execution in self.executions]
        for name, execution in tqdm(wanted, "preparing", unit="case"):
            decoding, start_s = decodings[name], time.perf_counter()
            talker = model.llm.talkers[decoding.talker]
            model.responder.adapters.select(decoding.adapter)
            num_blocks = model.responder.max_blocks_of(talker)
            runner = self.executions[execution].prepare(talker, decoding, num_blocks)
            if runner is None:
                left_out.setdefault(execution, []).append(name)
                continue
            case = cases[name, execution] = SpokenCase(name, execution, runner, decoding.adapter)
            case.setup_s = time.perf_counter() - start_s
            self._reply(model, case, texts[0])
            start_s = time.perf_counter()
            self._reply(model, case, texts[0])
            round_s += time.perf_counter() - start_s
        for execution, names in left_out.items():
            print(f"{execution} is left out for {', '.join(names)}: machine or talker cannot run it", flush=True)
        if not cases:
            raise UserError("only_executions: none of them can run here; add stepwise, which knows every talker")
        expected_s = len(texts) * round_s
        print(f"{len(texts)} queries, {len(cases)} cases: replies take about {expected_s:.0f} s", flush=True)
        return cases, left_out

    def _speak(self, model: SpeakingModel, cases: Cases, texts: Sequence[WrittenText]) -> None:
        """Speak all texts, the cases of one text in turn."""
        for turn, text in enumerate(tqdm(texts, "replies", unit="query")):
            for key in order_of_turn(list(cases), turn):
                cases[key].replies.append(self._reply(model, cases[key], text))

    def _reply(self, model: SpeakingModel, case: SpokenCase, text: WrittenText) -> Reply:
        return case.speak(text, model.responder.adapters, self.device, self.clock)
