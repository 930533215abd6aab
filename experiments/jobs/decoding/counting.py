"""What one block of a decoding costs whatever the clock says: passes, bytes of weights, operators, kernels, waits."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.jobs.decoding.machine import wait_for
from lightning_modules.talker.anchored import AnchoredTalker
from lightning_modules.talker.base import Talker
from lightning_modules.talker.decoding.streaming import SpeechChunk

# operators that multiply with a weight
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.linear, torch.ops.aten.bmm)
# operators through which the host waits for a value of the device
HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@dataclass(frozen=True)
class Reads:
    """What a block reads and computes in the reference execution.

    Attributes:
        num_passes: Passes through the first decoder layer.
        weight_bytes: Bytes of the parameters that its passes read, each parameter once per pass.
        weight_operations: Operations of the matrix products with parameters, two per multiplication with its addition.
        num_parameters: Parameters, in numbers, that one pass multiplies with, on average.
    """

    num_passes: int
    weight_bytes: int
    weight_operations: int
    num_parameters: float

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte of weights."""
        return self.weight_operations / self.weight_bytes

    @property
    def rows_per_pass(self) -> float:
        """Rows that a pass multiplies with the weights, on average over its matrices."""
        return self.weight_operations / (2 * self.num_parameters * self.num_passes)


class WeightReads(TorchDispatchMode):
    """Records which parameters operators read, pass by pass.

    A pass begins where the entry, the first matrix of the first decoder layer, is read. What is read more than once in
    a pass, such as an output head, counts once as bytes, and each time as operations. Of an embedding only the rows
    count that are looked up.

    Args:
        module: Whose parameters.
        entry: One of them.
    """

    def __init__(self, module: nn.Module, entry: nn.Parameter) -> None:
        super().__init__()
        self.by_storage = {one.untyped_storage().data_ptr(): one for one in module.parameters()}
        self.entry = entry.untyped_storage().data_ptr()
        self.num_passes = self.weight_operations = 0
        self.bytes_of: dict[tuple[int, int], int] = {}
        self.multiplied: dict[tuple[int, int], int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and look at what it read."""
        output = func(*args, **(kwargs or {}))
        if func.is_view or not isinstance(output, Tensor):
            return output
        flat = [one for arg in args for one in (arg if isinstance(arg, list | tuple) else [arg])]
        for tensor in flat:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self.by_storage:
                self._record(func, tensor, output)
        return output

    def _record(self, func: Any, tensor: Tensor, output: Tensor) -> None:
        storage = tensor.untyped_storage().data_ptr()
        is_lookup = func.overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index_select)
        is_product = tensor.ndim == 2 and func.overloadpacket in PRODUCTS
        if is_product and storage == self.entry:
            self.num_passes += 1
        key = self.num_passes, storage
        num_bytes = output.nbytes if is_lookup else min(tensor.nbytes, tensor.untyped_storage().nbytes())
        self.bytes_of[key] = max(num_bytes, self.bytes_of.get(key, 0))
        if is_product:
            num_rows = output.numel() // output.shape[-1]
            self.weight_operations += 2 * num_rows * tensor.numel()
            self.multiplied[key] = tensor.numel()

    def reads(self) -> Reads:
        """Sum up what was recorded; what came before the first pass belongs to it."""
        num_passes = max(1, self.num_passes)
        per_pass = sum(self.multiplied.values()) / num_passes
        return Reads(self.num_passes, sum(self.bytes_of.values()), self.weight_operations, per_pass)


def entry_of(talker: Talker) -> nn.Parameter:
    """Give the first matrix of the first layer that every pass of a talker goes through."""
    layers = talker.backbone.layers if isinstance(talker, AnchoredTalker) else talker.decode_layers
    return next(one for one in layers[0].parameters() if one.ndim == 2)


def count_reads(talker: Talker, stream: Callable[[], Iterable[SpeechChunk]]) -> Reads:
    """Count what the second block of a reply of at least three reads; the first has nothing before it to commit.

    Args:
        talker: Who speaks, eagerly and without autocast.
        stream: Starts the reply.
    """
    chunks = iter(stream())
    next(chunks)
    mode = WeightReads(talker, entry_of(talker))
    with mode:
        next(chunks)
    return mode.reads()


@dataclass(frozen=True)
class Launches:
    """What a block asks of the device, on average over those behind the first one.

    Attributes:
        num_operators: Operators that the host dispatches, not those within others.
        num_host_reads: Times that the host waits for a value.
        num_kernels: Kernels that run on a GPU; None on a CPU.
        num_launches: Kernels and graphs that the host launches; None on a CPU.
        num_waits: Calls of CUDA that wait; None on a CPU.
    """

    num_operators: int
    num_host_reads: int
    num_kernels: int | None = None
    num_launches: int | None = None
    num_waits: int | None = None


def count_launches(stream: Callable[[], Iterable[SpeechChunk]], device: torch.device) -> Launches:
    """Profile the blocks behind the first one of a reply: all, since a block may start ahead of its turn.

    Args:
        stream: Starts the reply, of at least two blocks.
        device: Where it is decoded.
    """
    chunks = iter(stream())
    next(chunks)
    wait_for(device)
    is_gpu = device.type == "cuda"
    with _silent(), profile(use_cpu=True, use_device="cuda" if is_gpu else None, use_kineto=is_gpu) as profiler:
        num_blocks = sum(1 for _ in chunks)
    # read as they were recorded: a tree of Python objects takes a second for a few thousand
    events = profiler.kineto_results.events()
    on_gpu = [one for one in events if one.device_type() == DeviceType.CUDA]
    on_host = [one for one in events if one.device_type() != DeviceType.CUDA]
    operators = [one for one in on_host if one.name().startswith("aten::")]
    counts = [_count_outermost(operators), sum(one.name() in HOST_READS for one in operators)]
    if is_gpu:
        counts.append(sum(not one.name().startswith(("Memcpy", "Memset")) for one in on_gpu))
        counts += [sum(one.name() in names for one in on_host) for names in (LAUNCHES, WAITS)]
    return Launches(*(round(count / num_blocks) for count in counts))


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what native code writes to the standard error output: the profiler says there that it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _count_outermost(operators: Iterable[Any]) -> int:
    """Count the operators that are not called within others, on each thread of the host."""
    ends: dict[int, int] = {}
    count = 0
    for one in sorted(operators, key=lambda one: (one.start_ns(), -one.duration_ns())):
        thread = one.start_thread_id()
        if one.start_ns() >= ends.get(thread, 0):
            ends[thread] = one.start_ns() + one.duration_ns()
            count += 1
    return count
