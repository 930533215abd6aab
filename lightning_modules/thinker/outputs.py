"""What a thinker gives: to training, to a streamed reply, to the talkers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ThinkerOutput:
    """What a teacher-forced pass over gold replies y_1..N gives; N leaves out the end-of-turn token.

    Attributes:
        loss: () mean cross-entropy over the reply tokens and their end-of-turn tokens.
        num_scored_tokens: ``()`` int64, the tokens that `loss` averages over.
        token_ids: (B, N) int64 y_j, zero past a row's length.
        lengths: (B,) int64 reply tokens of each row.
        hidden: (B, N, hidden_size) last hidden state that predicted y_j, zero past a row's length.
        embedding: (B, N, embedding_size) input embedding of y_j, zero past a row's length.
        is_exact: (B,) bool, whether every token and the end of turn is the most probable one; greedy decoding then
            gives exactly this reply.
        transcript_loss: () negative log-likelihood of the query transcripts, in nats a token; None without transcripts.
    """

    loss: Tensor
    num_scored_tokens: Tensor
    token_ids: Tensor
    lengths: Tensor
    hidden: Tensor
    embedding: Tensor
    is_exact: Tensor
    transcript_loss: Tensor | None = None


@dataclass(frozen=True)
class ThinkerPrompt:
    """A query that has been encoded.

    Attributes:
        embeddings: (1, P, embedding_size) input embeddings of the language model, audio and template together.
    """

    embeddings: Tensor


@dataclass(frozen=True)
class ThinkerToken:
    """One token of a streamed reply.

    Attributes:
        token_id: y_j.
        hidden: (hidden_size,) last hidden state that predicted y_j.
        embedding: (embedding_size,) input embedding of y_j.
    """

    token_id: int
    hidden: Tensor
    embedding: Tensor
