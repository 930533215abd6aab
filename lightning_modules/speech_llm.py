"""The speech LLM as one LightningModule: a thinker, and any number of talkers side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from datamodules.batch import SpokenBatch
from lightning_modules.adapters.adapter_set import TRAINED, AdapterFolder, adapt, refuse_unadapted
from lightning_modules.adapters.lora import LoraSettings
from lightning_modules.errors import UserError
from lightning_modules.inference.responder import Responder
from lightning_modules.inference.spoken_reply import SpokenReply
from lightning_modules.inference.token_agreement import TokenAgreement
from lightning_modules.number_checks import require_at_least, require_positive, require_within
from lightning_modules.sharding.shards import Shard, shards_of
from lightning_modules.sharding.trained_parts import TrainedParts
from lightning_modules.stored_text_states import refuse_states_of_another, stored_states
from lightning_modules.talker.base import Talker, TalkerOutput
from lightning_modules.talker.decoding.decoding import Decoding
from lightning_modules.talker.losses import LossTerm
from lightning_modules.talker.masking.schemes import RowGenerators
from lightning_modules.talker.network.anchors import TextStates
from lightning_modules.thinker.objective import ThinkerObjective
from lightning_modules.thinker.outputs import ReplyStates
from lightning_modules.thinker.thinker import Thinker
from lightning_modules.training.batch_fields import refuse_foreign_codes, refuse_missing_fields
from lightning_modules.training.checkpoints import leave_frozen_out, refuse_unfit
from lightning_modules.training.optimizer_settings import check_optimizer_settings
from lightning_modules.training.parts import THINKER, present_talkers
from lightning_modules.training.reduction import mean_over_ranks
from lightning_modules.training.run_means import RunMeans
from lightning_modules.training.seeding import derive_generator, mask_generators
from lightning_modules.training.text_overflow import TextOverflow
from lightning_modules.vocoder.base import Vocoder

Read = TypeVar("Read", bound=ReplyStates)


class SpeechLLM(TokenAgreement, TrainedParts):
    """Trains and tests a thinker with any set of named talkers.

    One thinker pass per batch feeds every talker, so that all of them see the same data in the same order. They share
    nothing else: each has its own loss, gradient clipping, source of randomness and TensorBoard run, and trains to
    the same weights whether or not the others are there.

    Args:
        thinker: Writes reply text to a spoken query.
        talkers: Talkers by name, None leaves one out; without any the thinker trains alone (stage 1 of the paper).
        thinker_objective: What the thinker learns from; it is frozen if left out.
        initial_talker: Trained talker whose weights all talkers start from; drawn by seed and name if left out.
        draw_weights: False leaves talkers that come trained as they are; those read from published weights always are.
        lora: Parts ("thinker.language_model", "thinker.speech_encoder", "thinker.adaptor", "talkers.<name>") that are
            frozen under trainable LoRA matrices, None leaves one out. Then nothing else trains.
        adapters: Folders of trained LoRA matrices by name, for decodings to choose from.
        vocoder: Turns speech tokens into samples; needed to speak, not to train.
        decodings: Ways to decode that a test compares, by the names of their rows; None leaves one out.
        max_text_tokens: Where a reply's text is cut off.
        max_speech_s: Where a reply's speech is cut off.
        packed_talkers: Let talkers speak with :func:`prepare_for_decoding`, faster on a CPU, for twice the memory.
        compiled_talkers: Let them speak with compiled blocks, or on a GPU captured ones; see :class:`Responder`.
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
        lora: dict[str, LoraSettings | None] | None = None,
        adapters: dict[str, AdapterFolder | None] | None = None,
        vocoder: Vocoder | None = None,
        decodings: dict[str, Decoding | None] | None = None,
        max_text_tokens: int = 64,
        max_speech_s: float = 20.0,
        packed_talkers: bool = False,
        compiled_talkers: bool = False,
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
        self.part_learning_rates = talker_learning_rates or {}
        rates = {f"talker_learning_rates.{name}": rate for name, rate in self.part_learning_rates.items()}
        check_optimizer_settings({"learning_rate": learning_rate, **rates}, weight_decay, warmup_steps, seed)
        require_positive(gradient_clip_norm=gradient_clip_norm, max_speech_s=max_speech_s)
        require_at_least(1, max_text_tokens=max_text_tokens, log_every_n_steps=log_every_n_steps)
        require_within(0.0, 1.0, final_learning_rate_share=final_learning_rate_share)
        present = present_talkers(talkers or {}, thinker_objective is not None, self.part_learning_rates)
        self.thinker, self.thinker_objective, self.vocoder = thinker, thinker_objective, vocoder
        self.talkers = nn.ModuleDict(present)
        self.max_text_tokens, self.max_speech_s = max_text_tokens, max_speech_s
        self.ways_to_speak = packed_talkers, compiled_talkers
        self.learning_rate, self.final_learning_rate_share = learning_rate, final_learning_rate_share
        self.weight_decay, self.warmup_steps, self.muon = weight_decay, warmup_steps, muon
        self.gradient_clip_norm, self.log_every_n_steps, self.seed = gradient_clip_norm, log_every_n_steps, seed
        self.check_tokens()
        if vocoder is not None:
            vocoder.requires_grad_(False)
        if thinker_objective is None:
            thinker.requires_grad_(False)
        for name, talker in present.items():
            if talker.is_published:
                continue
            if draw_weights and not lora:
                talker.reset_parameters(derive_generator("cpu", seed, "weights", name))
            if initial_talker is not None:
                talker.copy_weights(initial_talker)
        parts = thinker.adaptable_parts() | {f"talkers.{name}": talker for name, talker in present.items()}
        parts |= {} if vocoder is None else vocoder.adaptable_parts()
        adapted = {part: one for part, one in (lora or {}).items() if one is not None}
        if adapted:
            refuse_unadapted(adapted, self.run_names)
            self.requires_grad_(False)
        self.adapters = adapt(parts, adapted, adapters or {}, seed)
        given = {name: one for name, one in (decodings or {}).items() if one is not None}
        self.decodings = self.responder.resolve_all(given) if given else {}
        # In place of a talker's own loss; callbacks that teach otherwise put it there while they train.
        self.training_scorers: dict[str, Callable[..., TalkerOutput]] = {}
        self.text_overflow = TextOverflow()
        self.strict_loading = False  # frozen parts are in no checkpoint; what is missing beside them is refused
        self._is_warm = False
        # Test dialogues, from the first on, whose replies are timed; callbacks set it. None times all.
        self.num_timed: int | None = None
        self._validation = RunMeans(self.run_names, ("nll", "accuracy"))
        self.train()  # Lightning keeps the mode that each part is in: put the frozen ones into evaluation mode.

    @property
    def run_names(self) -> list[str]:
        """TensorBoard runs: the thinker if it trains, and one for each talker."""
        return [THINKER] * (self.thinker_objective is not None) + list(self.talkers)

    @property
    def responder(self) -> Responder:
        """The system that answers queries; raises UserError if there is no vocoder to speak with."""
        if self.vocoder is None:
            raise UserError("This speech LLM has no vocoder: set module.init_args.vocoder to let it speak.")
        talkers, limits = dict(self._named_talkers()), (self.max_text_tokens, self.max_speech_s)
        return Responder(self.thinker, talkers, self.vocoder, *limits, self.adapters, *self.ways_to_speak)

    def trained_parts(self) -> dict[str, nn.Module]:
        """Give what trains, by the name of its TensorBoard run."""
        return {name: self.thinker if name == THINKER else self.talkers[name] for name in self.run_names}

    def _named_talkers(self) -> list[tuple[str, Talker]]:
        return [(name, talker) for name, talker in self.talkers.items() if isinstance(talker, Talker)]

    def check_data(self, fields: Mapping[str, Sequence[str]]) -> None:
        """Refuse data that lacks a field; see :func:`refuse_missing_fields`."""
        objective = self.thinker_objective
        needs_transcripts = objective is not None and (objective.transcript > 0 or objective.text > 0)
        refuse_missing_fields(fields, objective is not None, needs_transcripts, bool(self.talkers))

    def setup(self, stage: str) -> None:
        """Refuse tokens of another codec, and text states that another thinker wrote."""
        super().setup(stage)
        refuse_states_of_another(self.thinker, self.trainer.datamodule)  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> "SpeechLLM":
        """Switch to training mode what trains; the rest stays in evaluation mode."""
        super().train(mode)
        if self.thinker_objective is None:
            self.thinker.eval()
        if self.vocoder is not None:
            self.vocoder.eval()
        return self

    def transfer_batch_to_device(self, batch: SpokenBatch, device: torch.device, dataloader_idx: int) -> SpokenBatch:
        """Move a batch, but on the host let each talker refuse speech tokens that it has no codes for."""
        refuse_foreign_codes(batch, self._named_talkers())
        return batch.to(device)

    def training_step(self, batch: SpokenBatch, batch_idx: int) -> Tensor:
        """Add the losses of all that trains; none depends on another's parameters."""
        terms: list[LossTerm] = []
        thinker_output = None
        if self.thinker_objective is not None:
            own_terms, scalars, thinker_output = self.thinker_objective(self.thinker, batch)
            terms += own_terms
            self.show_loss(THINKER, scalars["train/loss"])
            if self.should_log:
                self.log_scalars(THINKER, scalars, self.global_step)
        generators = mask_generators(self.seed, self.talkers, self.global_step, batch_idx, self.global_rank)
        for name, output in self._talk(batch, generators, thinker_output).items():
            terms += output.terms
            self.show_loss(name, output.nll)
            if self.should_log:
                self.log_scalars(name, output.as_scalars(), self.global_step)
        return mean_over_ranks(terms, self.num_ranks)

    def validation_step(self, batch: SpokenBatch, batch_idx: int) -> None:
        """Score gold replies; an example's masks depend on its id alone, so that validations and batchings compare."""
        thinker_output = None
        if self.thinker_objective is not None:
            thinker_output = self._think(self.thinker, batch)
            self._validation.update(THINKER, "nll", thinker_output.loss, thinker_output.num_scored_tokens)
            self._validation.update(THINKER, "accuracy", thinker_output.is_exact.float().mean(), len(batch.ids))
        of_rows = [mask_generators(self.seed, self.talkers, "validation", one) for one in batch.ids]
        generators = {name: [own[name] for own in of_rows] for name in self.talkers}
        for name, output in self._talk(batch, generators, thinker_output).items():
            self._validation.update(name, "nll", output.nll, output.num_scored_tokens)
            self._validation.update(name, "accuracy", output.accuracy, output.num_scored_tokens)

    def on_validation_epoch_end(self) -> None:
        """Log each run's means over the validation set, and how many examples had too much text, over all devices."""
        for name, means in self._validation.pop().items():
            if not self.trainer.sanity_checking:
                self.log_scalars(name, {f"val/{tag}": mean for tag, mean in means.items()}, self.global_step)
                self.log_dict({f"{name}/val/{tag}": mean for tag, mean in means.items()}, logger=False)
        if self.talkers:
            self.text_overflow.share(self.num_ranks)
            self.log("num_text_overflow", float(len(self.text_overflow.ids)), logger=False)

    def test_step(self, batch: SpokenBatch, batch_idx: int) -> list[dict[str, SpokenReply]]:
        """Answer each query of a batch with every decoding; see :meth:`Responder.compare`.

        Those behind the ones that are timed are answered side by side; see :meth:`Responder.compare_batch`.

        Returns:
            For each example, the reply of each decoding by its name.

        Raises:
            UserError: If there are no decodings to compare.
        """
        if not self.decodings:
            raise UserError("a test compares decodings, and there are none: name some in module.init_args.decodings")
        responder = self.responder
        if not self._is_warm:  # within the first step, and so in the precision of the test
            responder.warm_up(self.decodings, self.device)
            self._is_warm = True
        queries, turn = list(batch.queries()), batch_idx * len(batch)
        num_alone = len(queries) if self.num_timed is None else max(0, min(self.num_timed - turn, len(queries)))
        alone = [
            responder.compare(one, self.decodings, turn + row, past)
            for row, (one, past) in enumerate(queries[:num_alone])
        ]
        return alone + (responder.compare_batch(queries[num_alone:], self.decodings) if queries[num_alone:] else [])

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA adapter that trains, one PEFT folder per part.

        Raises:
            UserError: If none trains.
        """
        self.adapters.save(TRAINED, folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what does not train, and keep which examples had too much text, on any device."""
        leave_frozen_out(checkpoint, self)
        self.text_overflow.share(self.num_ranks)
        checkpoint["ids_with_text_overflow"] = sorted(self.text_overflow.ids)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not those of this module; see :func:`refuse_unfit`."""
        refuse_unfit(checkpoint, self)
        self.text_overflow.ids |= set(checkpoint["ids_with_text_overflow"])

    def shards(self) -> list[Shard]:
        """Split the thinker; talkers are small, and take passes in numbers that differ between devices."""
        return shards_of(self.thinker)

    @torch.no_grad()
    @record_function("step/thinker")
    def _think(self, read: Callable[..., Read], batch: SpokenBatch) -> Read:
        """Let the thinker read a batch once for all talkers, which must not train it."""
        if batch.query is None or batch.query_lengths is None:
            raise UserError("There is nothing to listen to: add query or text_states to the data module's fields.")
        return read(batch.query, batch.query_lengths, batch.reply_texts, history=batch.history)

    def read_text(self, batch: SpokenBatch, thinker_output: ReplyStates | None = None) -> TextStates:
        """Take text states from a thinker pass, from the batch if a job wrote them, or from a pass made now."""
        if thinker_output is None and batch.text_hidden is not None:
            return stored_states(self.thinker, batch)
        output = thinker_output or self._think(self.thinker.states, batch)  # talkers need no logits
        return TextStates(output.hidden.detach(), output.embedding.detach(), output.lengths)  # no talker moves it

    def _talk(
        self,
        batch: SpokenBatch,
        generators: Mapping[str, torch.Generator | RowGenerators],
        thinker_output: ReplyStates | None = None,
    ) -> dict[str, TalkerOutput]:
        """Score a batch with every talker, from one thinker pass; there is none if there are no talkers."""
        if not self.talkers:
            return {}
        if batch.units is None or batch.unit_lengths is None:
            raise UserError("Talkers train on speech tokens: add units to the data module's fields.")
        text = self.read_text(batch, thinker_output)
        outputs = {}
        for name, talker in self._named_talkers():
            overflow = talker.count_text_overflow(text.lengths, batch.unit_lengths)
            self.text_overflow.report(batch.ids, overflow, self.global_rank)
            score = self.training_scorers.get(name, talker) if self.training else talker
            with record_function(f"step/{name}"):
                outputs[name] = score(text, batch.units, batch.unit_lengths, generators[name])
        return outputs
