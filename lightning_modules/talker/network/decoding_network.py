"""A backbone as decoding runs it: few operators per pass, over a cache whose size and place never change."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_modules.talker.network.backbone import DecoderLayer, TalkerBackbone
from lightning_modules.talker.network.key_value_cache import OpenLayer, StaticCache
from lightning_modules.talker.network.packed_linear import FixedProduct, PackedLinear, WrittenProduct, is_plain_linear
from lightning_modules.talker.network.weight_versions import WeightVersion

OUTPUTS_OF_FAST_KERNELS = 64

# Weights in the precision of autocast, by weight: a pass under autocast would convert all of them again.
_CAST_WEIGHTS = WeakTensorKeyDictionary()


class Window(NamedTuple):
    """Where the positions of a pass stand, and what they may attend to.

    Attributes:
        slots: Places in the cache that they are written to, ``(L,) int64``.
        cosines: Of their rotation, for queries, keys and values, which are not rotated, ``(L, 3, 1, head_dim)``.
        sines: Likewise, negative in the first half.
        mask: What is added to their scores, ``(L, num_keys)``.
        start: The first of the slots, which follow each other; None if only the device knows it.
    """

    slots: Tensor
    cosines: Tensor
    sines: Tensor
    mask: Tensor
    start: int | None

    def split(self, sizes: Sequence[int]) -> "list[Window]":
        """Give the windows of passes that follow each other."""
        starts = [None if self.start is None else self.start + sum(sizes[:index]) for index in range(len(sizes))]
        return [Window(*parts) for parts in zip(*(one.split(sizes) for one in self[:4]), starts, strict=True)]

    def last(self, num_positions: int) -> "Window":
        """Give the window of the last positions."""
        start = None if self.start is None else self.start + len(self.slots) - num_positions
        slots, cosines, sines, mask = (one[-num_positions:] for one in self[:4])
        return Window(slots, cosines, sines, mask, start)


class _Layer(NamedTuple):
    """What a decoder layer applies, in this order."""

    attention_norm: Callable[[Tensor], Tensor]
    query_key_value: Callable[[Tensor], Tensor]
    attention_out: Callable[[Tensor, Tensor], Tensor]
    ffn_norm: Callable[[Tensor], Tensor]
    gate_and_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor, Tensor], Tensor]


class DecodingNetwork:
    """Runs a backbone over a static cache.

    Positions, slots and what may be attended to are tensors, so that a pass is one function of tensors. Under autocast
    it computes what autocast would, with weights that were converted once.

    Args:
        backbone: Gives the layers; they are read, not copied, unless autocast asks for another precision.
        max_positions: Positions that rotation is known for.
    """

    def __init__(self, backbone: TalkerBackbone, max_positions: int) -> None:
        weight = backbone.final_norm.weight
        self.device = weight.device
        self.cast_to = autocast_dtype(weight)
        self.dtype = self.cast_to or weight.dtype
        self.num_heads, self.head_dim = backbone.num_heads, backbone.head_dim
        self.modules = [layer for layer in backbone.layers if isinstance(layer, DecoderLayer)]
        self.attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
        self.layers = [
            _Layer(
                _norm(layer.attention_norm),
                as_product(layer.query_key_value, self.cast_to),
                as_sum(layer.attention_out, self.cast_to),
                _norm(layer.ffn_norm),
                as_product(layer.gate_and_up, self.cast_to),
                as_sum(layer.down, self.cast_to),
            )
            for layer in self.modules
        ]
        self.final_norm = _norm(backbone.final_norm)
        cosines, sines = backbone.rotary(torch.arange(max_positions, device=self.device))
        sines = torch.cat([-sines[:, : self.head_dim // 2], sines[:, self.head_dim // 2 :]], dim=1)
        tables = [
            torch.stack([table, table, torch.full_like(table, of_values)], dim=1)[:, :, None].to(self.dtype)
            for table, of_values in ((cosines, 1.0), (sines, 0.0))
        ]
        self.rotations = torch.stack(tables, dim=1)

    def new_cache(self, batch_size: int, capacity: int) -> StaticCache:
        """Allocate an empty cache for ``capacity`` positions of each row."""
        shape = (batch_size, capacity, 3, self.num_heads, self.head_dim)
        return StaticCache([torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in self.layers])

    def window(self, slots: Tensor, positions: Tensor, mask: Tensor, start: int | None) -> Window:
        """Make the window of positions ``(L,) int64``; the rest as of :class:`Window`."""
        cosines, sines = self.rotations.index_select(0, positions).unbind(1)
        return Window(slots, cosines, sines, mask, start)

    @property
    def is_plain(self) -> bool:
        """Whether all linear layers are plain or packed ones, of the backbone's own kind."""
        linear = [one for layer in self.modules for one in layer.modules() if isinstance(one, nn.Linear)]
        return len(linear) == 4 * len(self.modules) and all(map(is_plain_linear, linear))

    def write_out(self) -> None:
        """Write products and attention of one row in operators that a compiler fuses, with weights as they are now."""
        self.attend = _attend_written_out
        self.layers = [
            old._replace(
                query_key_value=written_product(layer.query_key_value, self.cast_to) or old.query_key_value,
                attention_out=written_sum(layer.attention_out, self.cast_to) or old.attention_out,
                gate_and_up=written_product(layer.gate_and_up, self.cast_to) or old.gate_and_up,
                down=written_sum(layer.down, self.cast_to) or old.down,
            )
            for old, layer in zip(self.layers, self.modules, strict=True)
        ]

    def __call__(self, x: Tensor, window: Window, cache: list[OpenLayer], num_wanted: int) -> Tensor:
        """Run all layers, and write the keys and values of all positions.

        Args:
            x: Embedded positions, ``(B, L, width)``.
            window: Where they stand.
            cache: The layers' caches.
            num_wanted: Positions, the last ones, whose hidden states are asked for; the last layer does no more work
                on others than their keys and values need.

        Returns:
            Hidden states, ``(B, num_wanted, width)``.
        """
        slots, cosines, sines, mask, start = window
        batch_size, length, width = x.shape
        x = x.reshape(-1, width)
        for layer, (buffer, keys, values) in zip(self.layers, cache, strict=True):
            shape = batch_size, length, 3, self.num_heads, self.head_dim
            query_key_value = layer.query_key_value(layer.attention_norm(x)).view(shape)
            rolled = query_key_value.roll(self.head_dim // 2, -1)
            if start is None:
                rotated = torch.addcmul(query_key_value * cosines, rolled, sines)
                buffer.index_copy_(1, slots, rotated)
            else:
                rotated = buffer.narrow(1, start, length)
                torch.addcmul(query_key_value * cosines, rolled, sines, out=rotated)
            query = rotated.select(2, 0)
            if num_wanted < length and layer is self.layers[-1]:
                x = x.view(batch_size, length, width)[:, -num_wanted:].reshape(-1, width)
                query, mask, length = query[:, -num_wanted:], mask[-num_wanted:], num_wanted
            attended = self.attend(query.transpose(1, 2), keys, values, mask)
            x = layer.attention_out(x, attended.transpose(1, 2).reshape(-1, width))
            gate, up = layer.gate_and_up(layer.ffn_norm(x)).chunk(2, dim=-1)
            x = layer.down(x, F.silu(gate).mul_(up))
        return self.final_norm(x).view(batch_size, length, width)


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """Give the precision that autocast computes products with a weight in; None without autocast."""
    device = weight.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return None if dtype == weight.dtype else dtype


def as_function(module: nn.Module, cast_to: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Give what a linear layer does, without what PyTorch does around a call of a module.

    Args:
        module: A linear layer, or what stands in its place (one with LoRA matrices, say), which is called as it is.
        cast_to: What autocast would convert weight and input to; None without autocast.
    """
    if isinstance(module, PackedLinear):
        return module.as_function(cast_to or module.weight.dtype)
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return module if cast_to is None else partial(_call_under_autocast, module, cast_to)
    if cast_to is None:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    bias = None if module.bias is None else module.bias.detach().to(cast_to)
    return partial(_cast_and_apply, cast_weight(module.weight, cast_to), bias)


def as_scores(module: nn.Module, cast_to: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Give what :func:`as_function` does, for many outputs of any number.

    The fast kernels of a GPU want rows of whole 16 bytes: a plain layer of another number of outputs gets some more,
    which nobody sees.
    """
    weight = _plain_weight(module, cast_to)
    if weight is None or weight.device.type != "cuda" or len(weight) % OUTPUTS_OF_FAST_KERNELS == 0:
        return as_function(module, cast_to)
    padded = F.pad(weight.detach(), (0, 0, 0, -len(weight) % OUTPUTS_OF_FAST_KERNELS))
    return partial(_multiply_and_cut, padded, len(weight))


def as_product(module: nn.Module, cast_to: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Give what :func:`as_function` does, for inputs of two dimensions: by one operator where that is known."""
    fixed = _fixed_product(module, cast_to)
    if fixed is not None:
        return fixed
    weight = _plain_weight(module, cast_to)
    return as_function(module, cast_to) if weight is None else partial(_multiply, weight.detach().t())


def as_sum(module: nn.Module, cast_to: torch.dtype | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Give the sum of a first input and what :func:`as_product` makes of a second one."""
    fixed = _fixed_product(module, cast_to)
    if fixed is not None:
        return fixed.plus
    weight = _plain_weight(module, cast_to)
    if weight is None:
        return partial(_apply_and_add, as_function(module, cast_to))
    return partial(_multiply_and_add, weight.detach().t())


def written_product(module: nn.Module, cast_to: torch.dtype | None) -> WrittenProduct | None:
    """Give the product of a linear layer for a compiler; None of a layer with more to it."""
    if not is_plain_linear(module):
        return None
    weight = module.weight
    assert isinstance(weight, Tensor)
    return WrittenProduct(weight if cast_to is None else cast_weight(weight, cast_to))


def written_sum(module: nn.Module, cast_to: torch.dtype | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Give what :func:`as_sum` does, likewise."""
    product = written_product(module, cast_to)
    return None if product is None else product.plus


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Give a weight in another precision, converted again only if it has changed."""
    if weight.is_inference():  # autograd does not count the changes of these
        return weight.detach().to(dtype)
    known: dict[torch.dtype, _CastWeight] = _CAST_WEIGHTS.setdefault(weight, {})
    cast = known.get(dtype)
    if cast is None or not cast.version.is_current(weight):
        cast = known[dtype] = _CastWeight(WeightVersion.of(weight), weight.detach().to(dtype))
    return cast.values


class _CastWeight(NamedTuple):
    """A weight in another precision, and what the weight was then."""

    version: WeightVersion
    values: Tensor


def _fixed_product(module: nn.Module, cast_to: torch.dtype | None) -> FixedProduct | None:
    return module.as_fixed() if isinstance(module, PackedLinear) and cast_to is None else None


def _plain_weight(module: nn.Module, cast_to: torch.dtype | None) -> Tensor | None:
    """Give the weight of a plain linear layer without bias that needs no conversion; None of any other module."""
    is_plain = type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks
    return module.weight if is_plain and module.bias is None and cast_to is None else None


def _norm(norm: nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    weight, eps = norm.weight, norm.eps
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64) and eps is not None:
        # PyTorch composes it of ten operators on a CPU.
        scale = math.sqrt(weight.numel())
        least = torch.tensor(scale * math.sqrt(eps), dtype=weight.dtype)
        return partial(_divide_by_root_mean_square, (weight * scale).detach(), least)
    return partial(F.rms_norm, normalized_shape=norm.normalized_shape, weight=weight, eps=eps)


def _divide_by_root_mean_square(weight: Tensor, least: Tensor, x: Tensor) -> Tensor:
    """Normalise as RMSNorm does: the root of ``sum(x ** 2) + n * eps`` is a hypotenuse."""
    norm = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)
    return (x / norm).mul_(weight)


def _attend_written_out(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend; from one position by sums of products, which a compiler fuses."""
    if query.shape[2] > 1:
        return F.scaled_dot_product_attention(query, keys, values, mask)
    scores = (query * keys).sum(dim=-1) * query.shape[-1] ** -0.5 + mask
    return (scores.softmax(dim=-1)[..., None] * values).sum(dim=2, keepdim=True)


def _multiply(transposed: Tensor, x: Tensor) -> Tensor:
    return torch.mm(x, transposed)


def _multiply_and_cut(weight: Tensor, num_outputs: int, x: Tensor) -> Tensor:
    return F.linear(x, weight)[..., :num_outputs]


def _multiply_and_add(transposed: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(x, y, transposed)


def _apply_and_add(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x + function(y)


def _cast_and_apply(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def _call_under_autocast(module: nn.Module, dtype: torch.dtype, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype):
        return module(x)
