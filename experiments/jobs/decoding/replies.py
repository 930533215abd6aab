"""Timed replies, and those of fixed length, of one decoding under one execution each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from callbacks.runtime.training_cost import peak_memory_gb
from experiments.jobs.decoding.executions import Runner
from experiments.jobs.decoding.machine import CLOCKS, wait_for
from lightning_modules.errors import UserError
from lightning_modules.talker.decoding.streaming import SpeechChunk, TextState


@dataclass(frozen=True)
class Reply:
    """What one reply took.

    Attributes:
        seconds: From the first text state to the last token.
        first_chunk_s: Seconds of these until the tokens of the first samples are there.
        num_passes: Passes that the decoder reports.
        num_blocks: Blocks that it took.
        tokens: The speech tokens.
    """

    seconds: float
    first_chunk_s: float
    num_passes: int
    num_blocks: int
    tokens: tuple[int, ...]

    @property
    def tokens_per_s(self) -> float:
        """Speech tokens per second."""
        return len(self.tokens) / self.seconds


def time_reply(
    stream: Callable[[], Iterable[SpeechChunk]], device: torch.device, clock: str = "wall", num_first_blocks: int = 1
) -> Reply:
    """Listen to one reply to its end, and time it.

    Args:
        stream: Starts the reply.
        device: Where it is decoded.
        clock: One of `CLOCKS`.
        num_first_blocks: Blocks that the first samples need.
    """
    wait_for(device)
    now, chunks, first_chunk_s = CLOCKS[clock], [], 0.0
    start = now()
    for chunk in stream():
        chunks.append(chunk)
        if len(chunks) == num_first_blocks:
            wait_for(device)
            first_chunk_s = now() - start
    wait_for(device)
    seconds = now() - start
    tokens = tuple(token for chunk in chunks for token in chunk.tokens.tolist())
    return Reply(seconds, first_chunk_s, sum(chunk.num_forwards for chunk in chunks), len(chunks), tokens)


@dataclass
class Case:
    """One decoding under one execution.

    Attributes:
        decoding: Name of the decoding.
        execution: Name of the execution.
        runner: Decodes a reply.
        text: What it says.
        num_blocks: Blocks of a reply.
        block_size: Tokens of a block.
        num_first_blocks: Blocks that the first samples need.
        setup_s: Seconds until it was prepared and warm: compilation, capture, packed weights, one reply.
        block_s: Seconds of a block, as the warm-up took.
        peak_memory_gb: Most memory of PyTorch during a reply, all talkers' weights included; None on a CPU.
        replies: The replies that were timed.
    """

    decoding: str
    execution: str
    runner: Runner
    text: Iterable[TextState]
    num_blocks: int
    block_size: int
    num_first_blocks: int = 1
    setup_s: float = 0.0
    block_s: float = 0.0
    peak_memory_gb: float | None = None
    replies: list[Reply] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in tables and in JSON."""
        return f"{self.decoding}, {self.execution}"

    @property
    def num_tokens(self) -> int:
        """Tokens of a reply."""
        return self.num_blocks * self.block_size

    def stream(self) -> Iterable[SpeechChunk]:
        """Start a reply."""
        return self.runner(self.text, self.num_blocks)

    def warm_up(self, device: torch.device) -> None:
        """Decode a reply that does not count, and see how long a block takes behind those of the first samples.

        On a GPU it is the second one, since the first may capture and compile in its midst.
        """
        if device.type == "cuda":
            self.speak(device)
        reply, num_behind = self.speak(device), self.num_blocks - self.num_first_blocks
        behind_s = reply.seconds - reply.first_chunk_s
        self.block_s = behind_s / num_behind if num_behind else reply.seconds / self.num_blocks

    def speak(self, device: torch.device, clock: str = "wall") -> Reply:
        """Decode one reply, and time it by one of `CLOCKS`.

        Raises:
            UserError: If it has another length than it should: it said EOS.
        """
        wait_for(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        reply = time_reply(self.stream, device, clock, self.num_first_blocks)
        if device.type == "cuda":
            self.peak_memory_gb = max(self.peak_memory_gb or 0.0, peak_memory_gb(device))
        if len(reply.tokens) != self.num_tokens:
            raise UserError(
                f"{self.name}: {len(reply.tokens)} tokens in place of {self.num_tokens}; replies of fixed length need "
                "greedy decoding, so leave a sampler's temperature at 0"
            )
        return reply
