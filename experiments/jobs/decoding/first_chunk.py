"""The time from a spoken query to the first samples of the answer, stage by stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from experiments.jobs.decoding.machine import CLOCKS, wait_for
from lightning_modules.number_checks import require_at_least, require_positive
from lightning_modules.thinker.adaptor import Adaptor
from lightning_modules.thinker.language_model import LanguageModel
from lightning_modules.thinker.log_mel import SAMPLE_RATE_HZ
from lightning_modules.thinker.speech_encoder import SpeechEncoder
from lightning_modules.vocoder.base import Vocoder

_T = TypeVar("_T")
STAGES = ("speech encoder", "thinker prefill", "thinker to enough text", "talker", "vocoder")
ENCODER, PREFILL, TEXT, TALKER, VOCODER = STAGES


@dataclass(frozen=True)
class FirstChunk:
    """What runs before and behind the talker until the first samples are there.

    Weights may be drawn: no time depends on them.

    Attributes:
        speech_encoder: Maps the query to frames.
        adaptor: Maps frames to embeddings.
        language_model: Reads them and writes text.
        vocoder: Turns speech tokens into samples.
        query_s: Length of the query.
        num_prompt_tokens: Tokens of the chat template around the query.

    Raises:
        UserError: If a number is out of range.
    """

    speech_encoder: SpeechEncoder
    adaptor: Adaptor
    language_model: LanguageModel
    vocoder: Vocoder
    query_s: float = 2.0
    num_prompt_tokens: int = 16

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(**{"first_chunk.query_s": self.query_s})
        require_at_least(1, **{"first_chunk.num_prompt_tokens": self.num_prompt_tokens})

    def move_to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Move all parts, and freeze them; adaptor and language model come to a precision."""
        for part in (self.speech_encoder, self.adaptor, self.language_model, self.vocoder):
            part.to(device).eval().requires_grad_(False)
        for part in (self.adaptor, self.language_model):
            part.to(dtype)

    def encode(self, query: Tensor) -> Tensor:
        """Give the embeddings of a query of samples, ``(1, T)``, as the language model reads them, ``(1, L, D)``.

        The speech encoder computes in the precision of the adaptor, apart from its features.
        """
        lengths = torch.tensor([query.shape[1]], device=query.device)
        dtype = next(self.adaptor.parameters()).dtype
        with torch.autocast(query.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            frames, num_frames = self.speech_encoder(query, lengths)
        return self.adaptor(frames.to(dtype), num_frames)[0]

    def num_blocks(self, block_size: int, at_most: int) -> int:
        """Give the blocks of speech that the vocoder needs for its first samples."""
        stream, device = self.vocoder.stream(), next(self.adaptor.parameters()).device
        for num_blocks in range(1, at_most):
            if len(stream.push(torch.zeros(block_size, dtype=torch.int64, device=device))):
                return num_blocks
        return at_most

    @torch.no_grad()
    def measure(self, num_text_tokens: int, codes: Tensor, clock: str) -> dict[str, float]:
        """Run all stages but the talker once.

        Args:
            num_text_tokens: Text tokens that the talker waits for.
            codes: Speech tokens that the vocoder gets, ``(n,) int64``.
            clock: One of `CLOCKS`.

        Returns:
            Milliseconds of each of `STAGES` but the talker.
        """
        device, model, now = codes.device, self.language_model, CLOCKS[clock]
        taken_ms: dict[str, float] = {}

        def timed(stage: str, action: Callable[[], _T]) -> _T:
            wait_for(device)
            start = now()
            result = action()
            wait_for(device)
            taken_ms[stage] = 1000 * (now() - start)
            return result

        query = torch.zeros(1, round(self.query_s * SAMPLE_RATE_HZ), device=device)
        audio = timed(ENCODER, lambda: self.encode(query))
        prompt = model.embed(torch.zeros(1, self.num_prompt_tokens, dtype=torch.int64, device=device))
        cache = model.new_cache()

        def write(embeddings: Tensor) -> Tensor:
            token = model.logits(model(embeddings, cache)[:, -1]).argmax(dim=-1)
            int(token)  # as the thinker does, which looks for the end of the turn
            return model.embed(token)[:, None]

        embedding = timed(PREFILL, lambda: write(torch.cat([prompt, audio.to(prompt.dtype)], dim=1)))

        def write_on() -> None:
            following = embedding
            for _ in range(num_text_tokens - 1):
                following = write(following)

        timed(TEXT, write_on)
        timed(VOCODER, lambda: self.vocoder.stream().push(codes))
        return taken_ms
