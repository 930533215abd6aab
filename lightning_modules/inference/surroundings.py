"""What a new thread does not inherit of PyTorch's state, and how tensors get from one thread's stream to another's."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor


class Surroundings:
    """Modes of the thread that makes it, for another thread to work in, without gradients and on a stream of its own.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        kind = device.type
        self._is_inference = torch.is_inference_mode_enabled()
        self._autocast = (
            kind,
            torch.get_autocast_dtype(kind),
            torch.is_autocast_enabled(kind),
            torch.is_autocast_cache_enabled(),
        )
        self._stream: torch.cuda.Stream | None = None
        if kind == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def entered(self) -> Generator[None]:
        """Work in these modes; at the end, wait for what was launched, whose memory may be used by others then."""
        on_stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        kind, dtype, is_lower, is_cached = self._autocast
        with (
            torch.inference_mode(self._is_inference),
            torch.no_grad(),
            torch.autocast(kind, dtype, is_lower, is_cached),
            on_stream,
        ):
            try:
                yield
            finally:
                if self._stream is not None:
                    self._stream.synchronize()

    def mark(self) -> torch.cuda.Event | None:
        """Mark the present place in the stream; None without one."""
        return None if self._stream is None else self._stream.record_event()


def take_over(item: Any, event: torch.cuda.Event | None) -> None:
    """Let this thread's stream wait for an item of another stream, and let its memory live until it was used here.

    Args:
        item: Tensors, or tuples, lists or dataclasses of them.
        event: Marks where the item was done; None if there is nothing to wait for.
    """
    if event is None:
        return
    for tensor in tensors_of(item):
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(event)
        tensor.record_stream(stream)


def tensors_of(item: Any) -> Iterator[Tensor]:
    """Give the tensors on GPUs that an item holds."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            yield item
    elif isinstance(item, tuple | list):
        for one in item:
            yield from tensors_of(one)
    elif is_dataclass(item):
        for one in vars(item).values():
            yield from tensors_of(one)
