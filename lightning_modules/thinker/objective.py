"""What the thinker learns from: spoken queries, their transcripts, and written queries."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.profiler import record_function

from lightning_modules.dialogue import History
from lightning_modules.errors import UserError
from lightning_modules.talker.losses import LossTerm, add_terms
from lightning_modules.thinker.outputs import ThinkerOutput
from lightning_modules.thinker.thinker import Thinker


class SpokenQueries(Protocol):
    """What an objective reads of a batch of B dialogues.

    Attributes:
        query: ``(B, S) float32`` at 16 kHz.
        query_lengths: ``(B,) int64`` samples.
        reply_texts: B replies.
        transcripts: B queries as text; None if nobody asked for them.
        history: What was said before the queries; None if every dialogue begins with its query.
    """

    query: Tensor | None
    query_lengths: Tensor | None
    reply_texts: list[str]
    transcripts: list[str] | None
    history: History | None


@dataclass(frozen=True)
class ThinkerObjective:
    """A weighted sum of losses; a part of weight 0 costs nothing.

    Pretrained parts need the first one only, as in stage 1 of the paper. Parts that start from nothing must also learn
    what a pretrained encoder hears and what a pretrained language model reads.

    Args:
        reply: Weight of the reply's cross-entropy, given the spoken query.
        transcript: Weight of the transcript's likelihood, read off the adaptor's embeddings of the query.
        text: Weight of the reply's cross-entropy, given the written query.

    Raises:
        UserError: If a weight is negative or all are 0.
    """

    reply: float = 1.0
    transcript: float = 0.0
    text: float = 0.0

    def __post_init__(self) -> None:
        """Check the weights."""
        weights = (self.reply, self.transcript, self.text)
        if min(weights) < 0 or max(weights) == 0:
            raise UserError(
                f"weights (reply, transcript, text) are {weights}: none may be negative, one must be positive."
            )

    @record_function("step/thinker")
    def __call__(
        self, thinker: Thinker, batch: SpokenQueries
    ) -> tuple[list[LossTerm], dict[str, Tensor], ThinkerOutput | None]:
        """Compute the loss of a batch.

        Args:
            thinker: What trains.
            batch: With queries, and with transcripts if their weights ask for them.

        Returns:
            The terms of the loss; what there is to log: `train/loss`, their sum, and each of them; and the pass over
            the spoken queries, for talkers to read along, None if ``reply`` is 0.

        Raises:
            UserError: If the batch has no transcripts but needs them.
        """
        assert batch.query is not None and batch.query_lengths is not None
        transcripts = batch.transcripts
        if transcripts is None and (self.transcript or self.text):
            raise UserError("The thinker is to learn from transcripts: add transcript to the data module's fields.")
        terms: dict[str, LossTerm] = {}
        heard_output = None
        scalars: dict[str, Tensor] = {}
        num_rows = batch.query_lengths.new_tensor(len(batch.reply_texts))
        if self.reply:
            heard = transcripts if self.transcript else None
            heard_output = output = thinker(batch.query, batch.query_lengths, batch.reply_texts, heard, batch.history)
            terms["reply"] = LossTerm(output.loss, output.num_scored_tokens, self.reply)
            scalars = {"train/nll": output.loss, "train/accuracy": output.is_exact.float().mean()}
            if batch.history is not None:
                scalars["train/num_dropped_turns"] = batch.query_lengths.new_tensor(output.num_dropped_turns)
            if output.transcript_loss is not None:
                terms["transcript"] = LossTerm(output.transcript_loss, num_rows, self.transcript)
        elif self.transcript:
            assert transcripts is not None
            loss = thinker.listen(batch.query, batch.query_lengths, transcripts)
            terms["transcript"] = LossTerm(loss, num_rows, self.transcript)
        if self.text:
            assert transcripts is not None
            output = thinker.read(transcripts, batch.reply_texts, batch.history)
            terms["text"] = LossTerm(output.loss, output.num_scored_tokens, self.text)
        parts = {f"train/{name}_loss": term.mean for name, term in terms.items()}
        total = add_terms(list(terms.values()))
        return list(terms.values()), {"train/loss": total, **scalars, **parts}, heard_output
