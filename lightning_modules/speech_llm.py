"""The speech LLM as one LightningModule: a thinker, and any number of talkers side by side."""

from collections.abc import Callable, Iterable, Sequence

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.batch import SpokenBatch
from lightning_modules.errors import UserError
from lightning_modules.inference.spoken_reply import Decoding, SpokenReply, ThinkerText, stream_spoken_reply
from lightning_modules.talker.base import Talker, TalkerOutput
from lightning_modules.talker.blocks import count_blocks
from lightning_modules.talker.network.anchors import TextStates, count_text_overflow
from lightning_modules.text_states import stored_text_states
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.thinker import Thinker, ThinkerOutput
from lightning_modules.training.optimization import optimizer_with_warmup_cosine
from lightning_modules.training.seeding import derive_generator, derive_seed
from lightning_modules.vocoder.base import Vocoder

THINKER = "thinker"


class SpeechLLM(L.LightningModule):
    """Trains and runs a thinker with any set of named talkers.

    One thinker pass a batch feeds every talker, so that all of them see the same data in the same order. They share
    nothing else: each has its own loss, gradient clipping, source of randomness and TensorBoard run, and trains to
    the same weights whether or not the others are there.

    Args:
        thinker: Writes reply text to a spoken query.
        talkers: Talkers by name, None leaves one out; without any the thinker trains alone (stage 1 of the paper).
        thinker_objective: What the thinker learns from; it is frozen if left out.
        initial_talker: Trained talker whose weights all talkers start from; drawn by seed and name if left out.
        draw_weights: False leaves talkers that come trained as they are.
        vocoder: Turns speech tokens into samples; needed to speak, not to train.
        test_steps: Decoding steps a block to test, by talker; all that a talker supports if it is not named.
        max_text_tokens: Where a reply's text is cut off.
        max_speech_s: Where a reply's speech is cut off.
        learning_rate: Peak learning rate of AdamW.
        talker_learning_rates: Other peak learning rates, by talker.
        weight_decay: Weight decay of matrices.
        warmup_steps: Steps of linear warm-up before the cosine.
        final_learning_rate_share: Where the cosine ends, as a share of the peak; 1 for weights that train on elsewhere.
        muon: Let Muon train the matrices of hidden layers; AdamW, the paper's, trains all else.
        gradient_clip_norm: Largest gradient norm of the thinker and of each talker.
        log_every_n_steps: Steps between training metrics.
        seed: Of initial weights and masks.

    Raises:
        UserError: If nothing trains, or a name or a width does not fit.

    Reference: arXiv 2602.08607; stage 1 trains the thinker, stage 2 the talkers.
    """

    def __init__(
        self,
        thinker: Thinker,
        talkers: dict[str, Talker | None] | None = None,
        thinker_objective: ThinkerObjective | None = None,
        initial_talker: Talker | None = None,
        draw_weights: bool = True,
        vocoder: Vocoder | None = None,
        test_steps: dict[str, list[int]] | None = None,
        max_text_tokens: int = 64,
        max_speech_s: float = 20.0,
        learning_rate: float = 2e-4,
        talker_learning_rates: dict[str, float] | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        final_learning_rate_share: float = 0.0,
        muon: bool = False,
        gradient_clip_norm: float = 1.0,
        log_every_n_steps: int = 10,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.test_steps, self.talker_learning_rates = test_steps or {}, talker_learning_rates or {}
        present = _present(talkers or {}, thinker_objective is not None, self.test_steps, self.talker_learning_rates)
        self.thinker, self.thinker_objective, self.vocoder = thinker, thinker_objective, vocoder
        self.talkers = nn.ModuleDict(present)
        self.max_text_tokens, self.max_speech_s = max_text_tokens, max_speech_s
        self.learning_rate, self.final_learning_rate_share = learning_rate, final_learning_rate_share
        self.weight_decay, self.warmup_steps, self.muon = weight_decay, warmup_steps, muon
        self.gradient_clip_norm, self.log_every_n_steps, self.seed = gradient_clip_norm, log_every_n_steps, seed
        if vocoder is not None:
            vocoder.requires_grad_(False)
        if thinker_objective is None:
            thinker.requires_grad_(False)
        for name, talker in present.items():
            if draw_weights:
                talker.reset_parameters(derive_generator("cpu", seed, "weights", name))
            if initial_talker is not None:
                talker.copy_weights(initial_talker)
        # In place of a talker's own loss; callbacks that teach otherwise put it there while they train.
        self.training_scorers: dict[str, Callable[..., TalkerOutput]] = {}
        self.ids_with_text_overflow: set[str] = set()
        self._validation = nn.ModuleDict(
            {name: nn.ModuleDict({tag: MeanMetric() for tag in ("nll", "accuracy")}) for name in self.run_names}
        )
        self.train()  # Lightning keeps the mode that each part is in: put the frozen ones into evaluation mode.

    @property
    def run_names(self) -> list[str]:
        """TensorBoard runs: the thinker if it trains, and one for each talker."""
        return [THINKER] * (self.thinker_objective is not None) + list(self.talkers)

    @property
    def decodings(self) -> list[Decoding]:
        """Ways to decode that a test compares."""
        return [
            Decoding(name, steps)
            for name, talker in self._named_talkers()
            for steps in self.test_steps.get(name) or sorted(talker.supported_steps, reverse=True)
        ]

    def _part(self, run_name: str) -> nn.Module:
        return self.thinker if run_name == THINKER else self.talkers[run_name]

    def _named_talkers(self) -> list[tuple[str, Talker]]:
        return [(name, talker) for name, talker in self.talkers.items() if isinstance(talker, Talker)]

    def train(self, mode: bool = True) -> "SpeechLLM":
        """Switch to training mode what trains; the rest stays in evaluation mode."""
        super().train(mode)
        if self.thinker_objective is None:
            self.thinker.eval()
        if self.vocoder is not None:
            self.vocoder.eval()
        return self

    def on_train_batch_start(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Make dropout a function of the step, so that a resumed run draws what an uninterrupted one does."""
        torch.manual_seed(derive_seed(self.seed, "dropout", self.global_step, batch_idx, self.global_rank))

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Add the losses of all that trains; none depends on another's parameters."""
        should_log = self.global_step % self.log_every_n_steps == 0
        loss = torch.zeros((), device=self.device)
        if self.thinker_objective is not None:
            loss, scalars = self.thinker_objective(self.thinker, batch)
            self._show(THINKER, loss)
            if should_log:
                self.log_scalars(THINKER, scalars, self.global_step)
        place = (self.global_step, batch_idx, self.global_rank)
        for name, output in self._talk(batch, place).items():
            loss = loss + output.loss
            self._show(name, output.nll)
            if should_log:
                self.log_scalars(name, output.as_scalars(), self.global_step)
        return loss

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Score gold replies; masks depend on the batch's place alone, so that validations compare."""
        size, thinker_output = len(batch.ids), None
        if self.thinker_objective is not None:
            thinker_output = self._think(batch)
            self._update(THINKER, thinker_output.loss, thinker_output.is_exact.float().mean(), size)
        place = ("validation", batch_idx, self.global_rank)
        for name, output in self._talk(batch, place, thinker_output).items():
            self._update(name, output.nll, output.accuracy, size)

    def on_validation_epoch_end(self) -> None:
        """Log each run's means over the validation set."""
        for name, metrics in self._validation.items():
            values = {f"val/{tag}": metric.compute() for tag, metric in metrics.items()}  # type: ignore[operator, union-attr]
            for metric in metrics.values():  # type: ignore[operator, union-attr]
                metric.reset()
            if not self.trainer.sanity_checking:
                self.log_scalars(name, values, self.global_step)
                self.log_dict({f"{name}/{tag}": value for tag, value in values.items()}, logger=False)

    def test_step(self, batch: SpokenBatch, batch_idx: int) -> list[dict[Decoding, SpokenReply]]:
        """Answer each query of a batch with every decoding in turn, so that a change of the machine's speed hits all.

        The thinker writes once to each query; its times count for every decoding.

        Returns:
            For each example, the reply of each decoding.
        """
        assert batch.query is not None and batch.query_lengths is not None
        replies = []
        decodings = self.decodings
        for row, (query, length) in enumerate(zip(batch.query, batch.query_lengths.tolist(), strict=True)):
            # Each goes first in turn, since the first finds the caches cold.
            first = (batch_idx * len(batch) + row) % len(decodings)
            text = self.write_text(query[:length])
            answers = {one: self.answer(text, one) for one in decodings[first:] + decodings[:first]}
            replies.append({decoding: answers[decoding] for decoding in decodings})
        return replies

    def on_test_start(self) -> None:
        """Decode once with every decoding, so that nobody pays for lazy initialisation in the timed runs."""
        text = self.write_text(torch.zeros(16_000, device=self.device))
        for decoding in self.decodings:
            self.answer(text, decoding)

    def write_text(self, query: Tensor) -> ThinkerText:
        """Let the thinker answer one spoken query, ``(S,) float32`` at 16 kHz, as fast as the text is read."""
        return ThinkerText(self.thinker, query, self.max_text_tokens)

    def answer(self, text: ThinkerText, decoding: Decoding) -> SpokenReply:
        """Speak the whole answer to one query, from :meth:`write_text`, and time it.

        Raises:
            UserError: If there is no vocoder to speak with.
        """
        reply = SpokenReply()
        for _ in self.stream(text, decoding, reply):
            pass
        return reply

    def stream(self, text: ThinkerText, decoding: Decoding, reply: SpokenReply | None = None) -> Iterable[Tensor]:
        """Speak the answer to one query chunk by chunk; see :func:`stream_spoken_reply`."""
        if self.vocoder is None:
            raise UserError("This speech LLM has no vocoder: set module.init_args.vocoder to let it speak.")
        talker = self.talkers[decoding.talker]
        assert isinstance(talker, Talker)
        samples_per_block = self.vocoder.samples_per_token * talker.block_size
        max_blocks = max(1, round(self.max_speech_s * self.vocoder.sample_rate / samples_per_block))
        return stream_spoken_reply(text, talker, self.vocoder, decoding.num_steps, max_blocks, reply)

    def configure_optimizers(self) -> dict:
        """AdamW with warm-up and cosine; see :func:`optimizer_with_warmup_cosine`."""
        rates = self.talker_learning_rates
        parts = [(self._part(name), rates.get(name, self.learning_rate)) for name in self.run_names]
        fused = self.trainer.precision != "16-mixed"  # there gradients are unscaled inside, behind the clipping
        return optimizer_with_warmup_cosine(
            self, parts, self.weight_decay, self.warmup_steps, self.muon, self.final_learning_rate_share, fused
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the thinker's and each talker's gradients by their own norm: no talker slows another down."""
        should_log = self.global_step % self.log_every_n_steps == 0
        for name in self.run_names:
            parameters = [parameter for parameter in self._part(name).parameters() if parameter.grad is not None]
            norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip_norm)
            if should_log:
                self.log_scalars(name, {"train/grad_norm": norm}, self.global_step)

    def log_scalars(self, run_name: str, scalars: dict[str, Tensor | float], step: int) -> None:
        """Write scalars to the TensorBoard run of that name; does nothing where there is none."""
        for logger in self._loggers(run_name):
            logger.log_metrics({tag: float(torch.as_tensor(value).detach()) for tag, value in scalars.items()}, step)

    def _loggers(self, run_name: str) -> Sequence[TensorBoardLogger]:
        if self._trainer is None or not self.trainer.is_global_zero:
            return []
        return [one for one in self.trainer.loggers if isinstance(one, TensorBoardLogger) and one.name == run_name]

    def _show(self, run_name: str, loss: Tensor) -> None:
        self.log(f"{run_name}/loss", loss.detach(), prog_bar=True, logger=False)

    def _update(self, run_name: str, nll: Tensor, accuracy: Tensor, weight: int) -> None:
        metrics = self._validation[run_name]
        metrics["nll"].update(nll, weight)  # type: ignore[index, operator]
        metrics["accuracy"].update(accuracy, weight)  # type: ignore[index, operator]

    @torch.no_grad()
    def _think(self, batch: SpokenBatch) -> ThinkerOutput:
        """Run the thinker once for all talkers, which must not train it."""
        if batch.query is None or batch.query_lengths is None:
            raise UserError("There is nothing to listen to: add query or text_states to the data module's fields.")
        return self.thinker(batch.query, batch.query_lengths, batch.reply_texts)

    def read_text(self, batch: SpokenBatch, thinker_output: ThinkerOutput | None = None) -> TextStates:
        """Take text states from a thinker pass, from the batch if a job wrote them, or from a pass made now."""
        if thinker_output is None and batch.text_states is not None:
            return stored_text_states(batch, self.thinker.hidden_size, self.thinker.embedding_size)
        output = thinker_output or self._think(batch)
        return TextStates(output.hidden, output.embedding, output.lengths)

    def _talk(
        self, batch: SpokenBatch, place: tuple[int | str, ...], thinker_output: ThinkerOutput | None = None
    ) -> dict[str, TalkerOutput]:
        """Score a batch with every talker, from one thinker pass; there is none if there are no talkers."""
        if not self.talkers:
            return {}
        if batch.units is None or batch.unit_lengths is None:
            raise UserError("Talkers train on speech tokens: add units to the data module's fields.")
        text = self.read_text(batch, thinker_output)
        outputs = {}
        for name, talker in self._named_talkers():
            num_anchors = count_blocks(batch.unit_lengths, talker.block_size), talker.anchors.anchors_per_block
            self._report_overflow(batch.ids, count_text_overflow(text.lengths, *num_anchors))
            generator = derive_generator(self.device, self.seed, "masks", name, *place)
            score = self.training_scorers.get(name, talker) if self.training else talker
            outputs[name] = score(text, batch.units, batch.unit_lengths, generator)
        return outputs

    def _report_overflow(self, ids: Sequence[str], overflow: Tensor) -> None:
        """Name each example, once, whose text is longer than the anchors of its speech: its talkers miss the rest."""
        new = {ids[row] for row in overflow.nonzero()[:, 0].tolist()} - self.ids_with_text_overflow
        if new:
            self.ids_with_text_overflow |= new
            rank_zero_warn(
                f"The replies {sorted(new)} have more text than the anchors of their speech can carry; their talkers "
                f"do not see the end of it ({len(self.ids_with_text_overflow)} such examples so far)."
            )


def _present(given: dict[str, Talker | None], trains_thinker: bool, *named: Iterable[str]) -> dict[str, Talker]:
    """Give the talkers that are there; settings may name one that is left out, but none that nobody knows."""
    talkers = {name: talker for name, talker in given.items() if talker is not None}
    if not talkers and not trains_thinker:
        raise UserError("Nothing to train: give at least one talker or a thinker_objective.")
    if THINKER in talkers:
        raise UserError(f"A talker cannot be called {THINKER!r}: that is the thinker's TensorBoard run.")
    if unknown := sorted(set().union(*named) - set(given)):
        raise UserError(f"test_steps or talker_learning_rates name {unknown}, but the talkers are {sorted(given)}.")
    return talkers
