"""A small recurrent network that lets the tokens of a block, predicted in one pass, depend on each other."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import UserError
from lightning_modules.talker.network.decoding_network import as_function, as_sum, cast_weight
from lightning_modules.talker.network.packed_linear import WrittenProduct, is_plain_linear


class CouplingFunctions(NamedTuple):
    """What the layers of a :class:`TokenCoupling` do, in the precision of decoding.

    Attributes:
        dtype: The precision.
        read: Gives what hidden states add to the gates, ``(..., width)`` to ``(..., 3 * size)``.
        embed: Gives what the tokens before add to them, ``(n,) int64`` to ``(n, 3 * size)``.
        recur: Gives what the states before add to them, ``(n, size)`` to ``(n, 3 * size)``.
        predict: Adds what states say to logits, ``(n, V)`` and ``(n, size)`` to ``(n, V)``.
        begin_id: Stands ahead of a block's first token.
    """

    dtype: torch.dtype
    read: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    recur: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor, Tensor], Tensor]
    begin_id: int


class TokenCoupling(nn.Module):
    """Adds to the logits of each token what the tokens before it in its block say about it.

    A masked talker that reveals several tokens in one pass takes each by itself, although they depend on each other.
    This gated recurrent unit runs through a block from left to right, reads the hidden state of each position and the
    token before it, and adds to the logits, so that a block is predicted by the chain rule:
    ``p(x_1, ..., x_n | h) = prod p(x_i | h, x_1, ..., x_(i-1))``. It is one small layer: a block still costs one pass
    of the backbone. Ahead of the first position stands ``begin_id``; what was said before is in the hidden states.

    Its output weights begin at 0: a talker that is given a coupling predicts as before.

    Args:
        width: Width of the hidden states.
        num_tokens: Token ids that may stand before a position.
        num_outputs: Tokens that can be predicted, the first ids.
        size: Width of the state.
        begin_id: Stands ahead of a block's first token.

    Raises:
        UserError: If the size is not positive.

    Reference: arXiv 2603.20216 (a small autoregressive head over the latents of a block); the unit is that of arXiv
    1406.1078 (GRU).
    """

    def __init__(self, width: int, num_tokens: int, num_outputs: int, size: int, begin_id: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"coupling_size is {size}: give the width of the coupling's state, or 0 for no coupling.")
        self.size, self.begin_id = size, begin_id
        self.embed = nn.Embedding(num_tokens, 3 * size)
        self.read = nn.Linear(width, 3 * size)
        self.recur = nn.Linear(size, 3 * size)
        self.predict = nn.Linear(size, num_outputs, bias=False)

    def functions(self, cast_to: torch.dtype | None = None) -> CouplingFunctions:
        """Give what its layers do.

        Args:
            cast_to: Another precision than that of the weights. A CPU keeps to the weights': products of one row are
                twice as slow there in bfloat16 as in float32.
        """
        table = self.embed.weight
        cast_to = None if table.device.type == "cpu" else cast_to
        read, recur = as_function(self.read, cast_to), as_function(self.recur, cast_to)
        table = table if cast_to is None else cast_weight(table, cast_to)
        return CouplingFunctions(
            table.dtype, read, partial(F.embedding, weight=table), recur, as_sum(self.predict, cast_to), self.begin_id
        )

    @property
    def is_plain(self) -> bool:
        """Whether its linear layers are plain or packed ones, with nothing added to them."""
        return all(is_plain_linear(one, may_have_bias=True) for one in (self.read, self.recur, self.predict))

    def written_out(self) -> CouplingFunctions:
        """Give what its layers do in operators that a compiler fuses, on a CPU, with weights as they are now."""
        read, recur = (WrittenProduct(one.weight, one.bias) for one in (self.read, self.recur))
        table, predict = self.embed.weight.detach(), WrittenProduct(self.predict.weight)
        return CouplingFunctions(
            table.dtype, read, partial(F.embedding, weight=table), recur, predict.plus, self.begin_id
        )

    def reset_output(self) -> None:
        """Let it add nothing to the logits."""
        with torch.no_grad():
            self.predict.weight.zero_()

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Run through blocks whose tokens are known.

        Args:
            hidden: ``(n, block_size, width)``.
            tokens: ``(n, block_size) int64``.

        Returns:
            The state that predicts each token from those before it, ``(n, block_size, size)``.
        """
        before = F.pad(tokens[:, :-1], (1, 0), value=self.begin_id)
        gates = self.read(hidden) + self.embed(before)
        state, states = gates.new_zeros(len(gates), self.size), []
        for of_position in gates.unbind(1):
            state = next_state(of_position, self.recur(state), state)
            states.append(state)
        return torch.stack(states, dim=1)


def next_state(gates: Tensor, recurrent_gates: Tensor, state: Tensor) -> Tensor:
    """Take one step of a gated recurrent unit.

    Args:
        gates: Of the inputs, ``(n, 3 * size)``: reset, update, new.
        recurrent_gates: Of the state before, ``(n, 3 * size)``.
        state: The state before, ``(n, size)``.

    Returns:
        The state, ``(n, size)``.

    Reference: arXiv 1406.1078, with the reset behind the recurrent product.
    """
    sizes = [2 * state.shape[1], state.shape[1]]
    (of_gates, of_new), (recurrent, recurrent_new) = gates.split(sizes, 1), recurrent_gates.split(sizes, 1)
    reset, update = (of_gates + recurrent).sigmoid().chunk(2, dim=1)
    new = torch.addcmul(of_new, reset, recurrent_new).tanh()
    return torch.lerp(new, state, update)


def coupled_logits(
    functions: CouplingFunctions, hidden: Tensor, logits: Tensor, x_t: Tensor | None, mask_id: int
) -> Tensor:
    """Predict the masked tokens of blocks from left to right, each behind the most probable ones before it.

    Args:
        functions: Of a :class:`TokenCoupling`.
        hidden: ``(n, block_size, width)``.
        logits: What they predict without a coupling, ``(n, block_size, V)``.
        x_t: Partly masked blocks, ``(n, block_size) int64``; what is revealed is read as it is. None if all is masked.
        mask_id: The mask.

    Returns:
        ``(n, block_size, V)``.
    """
    gates, all_logits = functions.read(hidden.to(functions.dtype)), logits.to(functions.dtype)
    previous = torch.full(hidden.shape[:1], functions.begin_id, device=hidden.device)
    state = gates.new_zeros(len(gates), gates.shape[-1] // 3, dtype=functions.dtype)
    coupled: list[Tensor] = []
    for place, (gates_here, logits_here) in enumerate(zip(gates.unbind(1), all_logits.unbind(1), strict=True)):
        state = next_state(gates_here + functions.embed(previous), functions.recur(state), state)
        coupled.append(functions.predict(logits_here, state))
        previous = coupled[-1].argmax(dim=-1)
        if x_t is not None:
            previous = torch.where(x_t[:, place] == mask_id, previous, x_t[:, place])
    return torch.stack(coupled, dim=1)
