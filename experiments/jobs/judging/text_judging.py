"""A job that lets a thinker answer spoken benchmarks and scores what it writes."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datamodules.benchmarks.query import Benchmark, BenchmarkQuery, Scoring
from datamodules.formats.atomic_files import write_json, write_text
from experiments.engine.artifacts import load_trained
from experiments.engine.exports import CONFIG_FILE, from_export
from experiments.jobs.decoding.machine import find_device
from experiments.jobs.judging.judge import Judge, JudgeRequest
from experiments.jobs.judging.scores import ScoredReply, SetScores, lay_out, sum_up
from experiments.jobs.judging.stored_records import StoredRecords
from experiments.jobs.speaking.speaking_model import find_source
from lightning_modules.errors import UserError
from lightning_modules.evaluation.answer_matching import MATCHER_NAME
from lightning_modules.evaluation.rubrics import CORRECT, RATING, RATING_WITH_REFERENCE, SYSTEM_PROMPT, Rubric
from lightning_modules.number_checks import require_at_least
from lightning_modules.stored_text_states import thinker_digest
from lightning_modules.thinker.thinker import Thinker

RUBRICS = {Scoring.OPEN: RATING, Scoring.REFERENCE: RATING_WITH_REFERENCE}
UNREADABLE_AUDIO = "audio cannot be read"
REFUSED = "refused by the thinker"
Asked = list[tuple[str, BenchmarkQuery]]


class TextJudging:
    """Answers every query of spoken benchmarks in writing; closed answers are matched, open ones go to a judge.

    Answers and verdicts are kept one by one in a cache: whoever kills the job and runs it again gets none twice, nor
    does another run with the same thinker or judge.

    Args:
        model: The run of a SpeechLLM, an export, or the folder of an experiment's runs.
        benchmarks: Benchmarks by name, None leaves one out.
        judge: Scores open answers; they are answered, but not scored, if None.
        judge_closed: Let the judge say of answers that are matched with aliases, too, whether they are correct.
        adapter: LoRA adapter that acts on the thinker.
        max_text_tokens: Where a reply is cut off.
        cache: Folder of the cache; ``cache`` beside the run directory if None.
        dry_run: Only count what would be asked, and show one request to the judge of each kind.

    Raises:
        UserError: If a number is out of range, or the judge is to say more but there is none.
    """

    def __init__(
        self,
        model: Path,
        benchmarks: dict[str, Benchmark | None],
        judge: Judge | None = None,
        judge_closed: bool = False,
        adapter: str | None = None,
        max_text_tokens: int = 256,
        cache: Path | None = None,
        dry_run: bool = False,
    ) -> None:
        require_at_least(1, max_text_tokens=max_text_tokens)
        if judge_closed and judge is None:
            raise UserError("judge_closed is true, but there is no judge; give one, or leave judge_closed out")
        self.model, self.adapter, self.max_text_tokens = Path(model), adapter, max_text_tokens
        self.benchmarks = {name: one for name, one in benchmarks.items() if one is not None}
        self.judge, self.judge_closed = judge, judge_closed
        self.cache, self.dry_run = cache, dry_run
        self.device = find_device()

    def run(self, output_dir: Path) -> dict[str, Any]:
        """Write ``scores.json``, ``results.md``, ``replies.jsonl`` and ``summary.txt``.

        Args:
            output_dir: The run directory of this job.

        Returns:
            ``<benchmark>/<set>/matched`` and ``.../judged``, and how many queries were answered and skipped.

        Raises:
            FileNotFoundError: If the model, a benchmark or the judge is not there.
            UserError: If no benchmark has a folder, or the judge cannot be asked.
        """
        asked: Asked = []
        skipped: Counter[tuple[str, str]] = Counter()
        for name, benchmark in self.benchmarks.items():
            contents = benchmark.read()
            asked += [(name, query) for query in contents.queries]
            skipped.update({(f"{name}/{one}", reason): count for (one, reason), count in contents.skipped.items()})
        if not asked:
            keys = ", ".join(f"job.init_args.benchmarks.{name}.init_args.folder=PATH" for name in self.benchmarks)
            raise UserError(f"there is nothing to answer ({sum(skipped.values())} items skipped); give {keys}")
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.dry_run:
            return self._plan(asked, skipped, folder)
        cache = self.cache or folder.parent / "cache"
        judge = None if self.judge is None else self.judge.describe()  # is it there? asked before any work
        replies, thinker = self._answer(asked, skipped, StoredRecords(cache / "answers.jsonl"))
        if self.judge is not None and judge is not None:
            self._judge(self.judge, judge, replies, StoredRecords(cache / "verdicts.jsonl"))
        sets = sum_up(replies, skipped)
        settings = {
            "model": str(self.model),
            "thinker": thinker,
            "adapter": self.adapter,
            "max_text_tokens": self.max_text_tokens,
            "judge": judge,
            "rubrics": [one.describe() for one in self._rubrics(replies)] if judge else [],
            "matcher": MATCHER_NAME,
        }
        return _write(folder, settings, sets, replies)

    def _answer(
        self, asked: Asked, skipped: Counter[tuple[str, str]], answers: StoredRecords
    ) -> tuple[list[ScoredReply], str]:
        """Answer what was not answered before; return all replies, and who answered."""
        thinker = load_thinker(self.model, self.adapter).eval().to(self.device)
        digest = thinker_digest(thinker)
        keys = [self._answer_key(digest, benchmark, query) for benchmark, query in asked]
        num_known, replies = sum(key in answers for key in keys), []
        with tqdm(total=len(asked), initial=num_known, desc="answering", unit="query") as progress:
            for key, (benchmark, query) in zip(keys, asked, strict=True):
                if key not in answers:
                    progress.update()
                    try:
                        answers.add(key, self._reply(thinker, query))
                    except _NotAsked as error:
                        skipped[f"{benchmark}/{query.set_name}", error.reason] += 1
                        tqdm.write(f"{benchmark}/{query.set_name} {query.number}: {error.reason} ({error.__cause__})")
                        continue
                replies.append(ScoredReply.of(benchmark, query, **answers[key]))
        return replies, digest

    def _answer_key(self, digest: str, benchmark: str, query: BenchmarkQuery) -> str:
        facts = [digest, self.max_text_tokens, benchmark, query.set_name, query.number, query.audio.fingerprint()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    @torch.no_grad()
    def _reply(self, thinker: Thinker, query: BenchmarkQuery) -> dict[str, Any]:
        try:
            speech = torch.from_numpy(query.audio.read()).to(self.device)
        except (OSError, UserError) as error:
            raise _NotAsked(UNREADABLE_AUDIO) from error
        try:
            prompt = thinker.encode(speech)
        except UserError as error:
            raise _NotAsked(REFUSED) from error
        tokens = [token.token_id for token in thinker.stream(prompt, self.max_text_tokens)]
        return {"reply": thinker.decode(tokens).strip(), "is_cut": len(tokens) == self.max_text_tokens}

    def _judge(
        self, judge: Judge, description: Mapping[str, Any], replies: Sequence[ScoredReply], verdicts: StoredRecords
    ) -> None:
        """Let the judge score what it did not score before."""
        wanted: dict[str, JudgeRequest] = {}
        keyed: list[tuple[ScoredReply, Rubric, str]] = []
        for one in replies:
            rubric = self._rubric(one.query.scoring)
            if rubric is None:
                continue
            if not one.reply.strip():
                one.judged = min(score for _, score in rubric.scores)
                continue
            request = _request(rubric, description, one)
            keyed.append((one, rubric, request.key))
            wanted[request.key] = request
        pending = [request for key, request in wanted.items() if key not in verdicts]
        with tqdm(total=len(wanted), initial=len(wanted) - len(pending), desc="judging", unit="answer") as progress:
            for request, verdict in judge.ask(pending) if pending else ():
                verdicts.add(request.key, verdict)
                progress.update()
        for one, rubric, key in keyed:
            one.verdict = verdicts[key]
            one.judged = rubric.score(verdicts[key])

    def _rubric(self, scoring: Scoring) -> Rubric | None:
        """Give what the judge is asked of an answer; None if it is not asked."""
        if self.judge_closed and scoring is Scoring.ALIAS:
            return CORRECT
        return RUBRICS.get(scoring)

    def _rubrics(self, replies: Sequence[ScoredReply]) -> list[Rubric]:
        used = dict.fromkeys(self._rubric(one.query.scoring) for one in replies)
        return [one for one in used if one is not None]

    def _plan(self, asked: Asked, skipped: Mapping[tuple[str, str], int], folder: Path) -> dict[str, Any]:
        """Write what would be asked, without answering."""
        counts = Counter((f"{name}/{query.set_name}", query.scoring) for name, query in asked)
        num_judged = sum(self._rubric(query.scoring) is not None for _, query in asked)
        told = "without a judge, these stay unscored" if self.judge is None else f"{type(self.judge).__name__}"
        lines = ["| set | scored by | queries | to the judge |", "|---|---|---|---|"]
        for (name, scoring), count in counts.items():
            lines.append(f"| {name} | {scoring.value} | {count} | {0 if self._rubric(scoring) is None else count} |")
        lines += ["", f"{len(asked)} queries to answer, {num_judged} answers to judge ({told})"]
        lines += [f"skipped: {count} of {name}: {reason}" for (name, reason), count in skipped.items()]
        shown: set[str] = set()
        for name, query in asked:
            rubric = self._rubric(query.scoring)
            if rubric is not None and rubric.name not in shown:
                shown.add(rubric.name)
                text = rubric.render(query.question, "(the thinker's reply)", query.references)
                title = f"The judge is asked ({rubric.name}, version {rubric.version}), for {name}/{query.set_name}"
                lines += ["", f"{title} {query.number}:", "", SYSTEM_PROMPT, "", text]
        write_text(folder / "results.md", "\n".join(lines) + "\n")
        write_text(folder / "summary.txt", "dry run: nothing was asked\n" + "\n".join(lines) + "\n")
        return {"num_to_answer": len(asked), "num_to_judge": num_judged, "num_skipped": sum(skipped.values())}


class _NotAsked(Exception):
    """Why a query is not asked; its cause says more."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def load_thinker(model: Path, adapter: str | None = None) -> Thinker:
    """Load the thinker of a run or an export.

    Args:
        model: The run of a SpeechLLM, or what else :func:`find_source` finds.
        adapter: LoRA adapter that acts on it.

    Raises:
        FileNotFoundError: If there is none.
        UserError: If it has no thinker or no such adapter.
    """
    source = find_source(model)
    is_export = (source / CONFIG_FILE).is_file()
    if adapter is None and not is_export:
        thinker = load_trained(source, "thinker")
    else:
        llm = from_export(source) if is_export else load_trained(source)
        llm.adapters.check(adapter)
        llm.adapters.select(adapter)
        thinker = llm.thinker
    assert isinstance(thinker, Thinker)
    return thinker


def _request(rubric: Rubric, judge: Mapping[str, Any], one: ScoredReply) -> JudgeRequest:
    text = rubric.render(one.query.question, one.reply, one.query.references)
    facts = json.dumps([judge, rubric.name, rubric.version, SYSTEM_PROMPT, text], sort_keys=True)
    return JudgeRequest(hashlib.sha256(facts.encode()).hexdigest()[:32], SYSTEM_PROMPT, text, rubric.verdicts)


def _write(
    folder: Path, settings: dict[str, Any], sets: Sequence[SetScores], replies: Sequence[ScoredReply]
) -> dict[str, Any]:
    """Write results for people and programs; return the numbers."""
    table = lay_out(sets)
    judge = settings["judge"]
    rubrics = ", ".join(f"{one['name']} v{one['version']}" for one in settings["rubrics"]) or "none"
    who = "no judge" if judge is None else f"judge {judge['name']} ({judge['judge']}; rubrics: {rubrics})"
    table += f"\n{who}; matched by {settings['matcher']}; intervals over queries"
    write_json(folder / "scores.json", {**settings, "sets": [asdict(one) for one in sets]})
    write_text(
        folder / "replies.jsonl", "".join(json.dumps(one.as_record(), ensure_ascii=False) + "\n" for one in replies)
    )
    write_text(folder / "results.md", table + "\n")
    write_text(folder / "summary.txt", table + "\n")
    metrics: dict[str, Any] = {}
    for one in sets:
        metrics |= {f"{one.name}/matched": one.matched.value} if one.matched else {}
        metrics |= {f"{one.name}/judged": one.judged.value} if one.judged else {}
    num_skipped = sum(sum(one.skipped.values()) for one in sets)
    return {**metrics, "num_answered": len(replies), "num_skipped": num_skipped}
