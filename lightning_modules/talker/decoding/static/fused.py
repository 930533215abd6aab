"""Programs in fewer kernels: what stands between two products of matrices becomes one kernel of a compiler."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_modules.talker.decoding.static.masked_tokens import MaskedProgram
from lightning_modules.talker.decoding.static.passes import FlatNetwork
from lightning_modules.talker.decoding.static.program import Block, BlockProgram, FlatFunction
from lightning_modules.talker.decoding.static.steps.flat_steps import FlatSteps

Program = TypeVar("Program", bound=BlockProgram)

MAX_PASSES_AT_ONCE = 4  # a block of more is compiled pass by pass: compilation takes some seconds for each pass
MAX_SHAPES = 256  # numbers of positions times lengths of attention, of all talkers


def fused(program: BlockProgram, backend: str = "inductor") -> Callable[..., Block]:
    """Give a function that does what a call of a program does, compiled: a block of few passes as a whole.

    Args:
        program: Stays as it is.
        backend: Of :func:`torch.compile`.
    """
    if program.num_steps > MAX_PASSES_AT_ONCE:
        return with_fused_passes(program, backend)
    compiled = torch.compile(program.__call__, fullgraph=True, dynamic=False, backend=backend)

    def run(*inputs: Any) -> Block:
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
            return compiled(*inputs)

    return run


def fused_steps(program: MaskedProgram, backend: str = "inductor") -> FlatSteps:
    """Give the steps of a program, compiled: one of few passes as a whole; arguments as of :func:`fused`."""
    by_pass = with_fused_passes(program, backend) if program.num_first_steps > MAX_PASSES_AT_ONCE else None
    return FlatSteps(program, _compiler(backend), by_pass)


def with_fused_passes(program: Program, backend: str = "inductor") -> Program:
    """Give a program whose passes are compiled one by one; arguments as of :func:`fused`."""
    by_pass = copy.copy(program)
    by_pass.networks = [FlatNetwork(one, _compiler(backend)) for one in program.networks]  # type: ignore[misc]
    return by_pass


def _compiler(backend: str) -> Callable[[FlatFunction], FlatFunction]:
    """Give what compiles a pass, again for each number of positions."""

    def compiler(function: FlatFunction) -> FlatFunction:
        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

        def run(*inputs: Tensor, **numbers: int) -> tuple[tuple[Tensor, ...], Any]:
            with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
                return compiled(*inputs, **numbers)

        return run

    return compiler
