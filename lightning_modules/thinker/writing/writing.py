"""Greedy writing of a reply by a language model."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache

from lightning_modules.number_checks import require_at_least
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.outputs import ThinkerToken


class Writing(Protocol):
    """A way to write a reply; all of them write the same."""

    def write(
        self, model: LanguageModel, prompt: Tensor, max_new_tokens: int, stop_ids: Collection[int]
    ) -> Iterator[ThinkerToken]:
        """Write greedily.

        Args:
            model: Writes.
            prompt: Input embeddings of all that comes before the reply, ``(1, P, embedding_size)``.
            max_new_tokens: Upper limit of tokens.
            stop_ids: Tokens that end the reply; they do not belong to it.

        Yields:
            The tokens of the reply.
        """
        ...


@dataclass(frozen=True)
class GrowingCache:
    """Keys and values are concatenated as they come, and the host looks at each token."""

    def write(
        self, model: LanguageModel, prompt: Tensor, max_new_tokens: int, stop_ids: Collection[int]
    ) -> Iterator[ThinkerToken]:
        """Write; see :class:`Writing`."""
        return _write(model, prompt, max_new_tokens, stop_ids, model.new_cache(), 1)


@dataclass(frozen=True)
class PreallocatedCache:
    """Keys and values lie in buffers as long as prompt and reply, and the host looks for the end now and then.

    Between two looks the device writes on by itself, beyond the end of the reply if it comes there; what is surplus is
    dropped. On a GPU as many tokens per look as a block of speech reads cost a talker no wait.

    Attributes:
        tokens_per_look: Tokens that are written before the host looks at them.

    Raises:
        UserError: If the number is below 1.
    """

    tokens_per_look: int = 4

    def __post_init__(self) -> None:
        """Check the number."""
        require_at_least(1, tokens_per_look=self.tokens_per_look)

    def write(
        self, model: LanguageModel, prompt: Tensor, max_new_tokens: int, stop_ids: Collection[int]
    ) -> Iterator[ThinkerToken]:
        """Write; see :class:`Writing`."""
        cache = model.new_fixed_cache(prompt.shape[1] + max_new_tokens)
        return _write(model, prompt, max_new_tokens, stop_ids, cache, self.tokens_per_look)


@torch.no_grad()
def _write(
    model: LanguageModel,
    prompt: Tensor,
    max_new_tokens: int,
    stop_ids: Collection[int],
    cache: Cache,
    tokens_per_look: int,
) -> Iterator[ThinkerToken]:
    embeddings, num_left = prompt, max_new_tokens
    while num_left > 0:
        written = []
        for _ in range(min(tokens_per_look, num_left)):
            hidden = model(embeddings, cache)[:, -1]
            token_ids = model.logits(hidden).argmax(dim=-1)
            embeddings = model.embed(token_ids)[:, None]
            written.append((token_ids, hidden[0], embeddings[0, 0]))
        num_left -= len(written)
        on_host = torch.cat([token_ids for token_ids, _, _ in written]).tolist()
        for token_id, (_, hidden, embedding) in zip(on_host, written, strict=True):
            if token_id in stop_ids:
                return
            yield ThinkerToken(token_id, hidden, embedding)


def writing_for(device: torch.device) -> Writing:
    """Give the way to write that is the faster one on a device.

    On a GPU each look at a token waits for all launched kernels. On a CPU there is nothing to wait for, and the mask
    over the whole buffer costs more than the concatenation.
    """
    return PreallocatedCache() if device.type == "cuda" else GrowingCache()
