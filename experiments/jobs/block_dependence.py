"""A job that measures how far the tokens of a block depend on each other, for trained talkers."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from callbacks.block_dependence import score_batch
from datamodules.formats.atomic_files import write_text
from datamodules.spoken_dialogues import SpokenDialogueDataModule
from experiments.jobs.decoding.machine import find_device
from lightning_modules.errors import UserError
from lightning_modules.evaluation.block_dependence import BlockNll
from lightning_modules.number_checks import require_at_least
from lightning_modules.speech_llm import SpeechLLM


class BlockDependenceJob:
    """Scores gold replies of the validation set in 1 to as many steps as a block has tokens; see :func:`block_nll`.

    Args:
        module: The talkers, and the thinker whose text states they read.
        datamodule: Gives text states (or queries) and speech tokens.
        talkers: Names of talkers that predict masked tokens.
        max_batches: Batches that are scored, from the first on; all if None.

    Raises:
        UserError: If no talker is named, or the number is below 1.
    """

    def __init__(
        self,
        module: SpeechLLM,
        datamodule: SpokenDialogueDataModule,
        talkers: Sequence[str],
        max_batches: int | None = None,
    ) -> None:
        require_at_least(1, max_batches=max_batches)
        if not talkers:
            raise UserError("talkers is empty; name at least one that predicts masked tokens")
        self.module, self.datamodule, self.talkers, self.max_batches = module, datamodule, list(talkers), max_batches

    def run(self, output_dir: Path) -> dict[str, float]:
        """Write ``results.md``.

        Args:
            output_dir: The run directory of this job.

        Returns:
            The scalars of each talker, under its name.

        Raises:
            UserError: If a talker is unknown or masks nothing, or there is no validation reply.
        """
        device = find_device()
        self.module.eval().to(device)
        self.datamodule.setup("validate")
        found: dict[str, BlockNll] = {}
        num_replies = 0
        for number, batch in enumerate(tqdm(self.datamodule.val_dataloader(), desc="scoring blocks", unit="batch")):
            if self.max_batches is not None and number >= self.max_batches:
                break
            num_replies += len(batch.ids)
            for name, own in score_batch(self.module, self.talkers, batch.to(device).to_float()).items():
                found[name] = found[name] + own if name in found else own
        if not found:
            raise UserError("there is no validation reply to score; give a datamodule with a validation_index")
        table = lay_out(found) + f"\n\nnats per token over gold blocks of {num_replies} validation replies, clean past"
        write_text(Path(output_dir) / "results.md", table + "\n")
        write_text(Path(output_dir) / "summary.txt", table + "\n")
        return {f"{name}/{tag}": value for name, own in found.items() for tag, value in own.as_scalars().items()}


def lay_out(found: dict[str, BlockNll]) -> str:
    """Lay out what was found: a line for all blocks of a talker, and one for each block of a reply."""
    steps = next(iter(found.values())).num_steps
    columns = ["talker", "block", "tokens", *(f"{one} steps" for one in steps), "one-step minus sequential"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, own in found.items():
        for block in (None, *range(len(own.counts))):
            count = int(own.counts.sum() if block is None else own.counts[block])
            cells = [name, "all" if block is None else str(block), str(count)]
            cells += [f"{own.per_token(one, block):.3f}" for one in steps] + [f"{own.dependence(block):.3f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
