"""Outputs of a thinker: for training, for a streamed reply, for the talkers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReplyStates:
    """What a talker reads of a teacher-forced pass over gold replies ``y_1..N``; N does not count the end of turn.

    Attributes:
        token_ids: ``y_j``, ``(B, N) int64``, zero past a row's length.
        lengths: Reply tokens of each row, ``(B,) int64`` on the host.
        hidden: Last hidden state that predicted ``y_j``, ``(B, N, hidden_size)``, zero past a row's length.
        embedding: Input embedding of ``y_j``, ``(B, N, embedding_size)``, zero past a row's length.
        num_dropped_turns: Oldest turns of the batch that the context had no room for.
    """

    token_ids: Tensor
    lengths: Tensor
    hidden: Tensor
    embedding: Tensor
    num_dropped_turns: int = 0


@dataclass(frozen=True, kw_only=True)
class ThinkerOutput(ReplyStates):
    """The same with its scores, for which the output head has run.

    Attributes:
        loss: Mean cross-entropy ``()`` over the reply tokens and their end-of-turn tokens.
        num_scored_tokens: Tokens that ``loss`` averages over, replies and ends of turn, ``() int64`` on the host.
        is_exact: Whether every token and the end of turn is the most probable one, so that greedy decoding gives this
            very reply, ``(B,) bool``.
        transcript_loss: Negative log-likelihood of the query transcripts, in nats per token, ``()``; None without
            transcripts.
    """

    loss: Tensor
    num_scored_tokens: Tensor
    is_exact: Tensor
    transcript_loss: Tensor | None = None


@dataclass(frozen=True)
class ThinkerPrompt:
    """A query that has been encoded.

    Attributes:
        embeddings: Input embeddings of the language model, audio and template together, ``(1, P, embedding_size)``.
        num_dropped_turns: Oldest turns that the context had no room for.
    """

    embeddings: Tensor
    num_dropped_turns: int = 0


@dataclass(frozen=True)
class ThinkerToken:
    """One token of a streamed reply.

    Attributes:
        token_id: Token ``y_j``.
        hidden: Last hidden state that predicted ``y_j``, ``(hidden_size,)``.
        embedding: Input embedding of ``y_j``, ``(embedding_size,)``.
    """

    token_id: int
    hidden: Tensor
    embedding: Tensor
