"""A linear layer that multiplies few rows on a CPU about as fast as its weight can be read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.talker.network.weight_versions import WeightVersion

PACKED_DTYPES = (torch.float32, torch.bfloat16)
# The packed kernel reads a large weight faster for 4 rows than for 1, 2 or 3; 1 or 2 rows of float32 are fastest by a
# plain product with a small weight transposed. Measured: experiments/RESULTS.md, "Linear layers of few rows on a CPU".
_FULL_ROWS = 4
_MIN_SIZE_TO_FILL_UP = 2**20
_MAX_SIZE_TO_TRANSPOSE = 2**19
_MAX_ROWS_TRANSPOSED = 2


@dataclass(frozen=True, eq=False)
class _Pack:
    """A copy of a weight in other orders.

    Attributes:
        version: What it is a copy of.
        packed: The weight in the order of oneDNN's blocks.
        transposed: It as ``(in_features, out_features)``; None where that is of no use.
    """

    version: WeightVersion
    packed: Tensor
    transposed: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> "_Pack":
        """Copy a weight, ``(out_features, in_features)``, in a precision."""
        version = WeightVersion.of(weight)
        values = version.values.to(dtype).contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(values)
        is_small = dtype == torch.float32 and values.numel() < _MAX_SIZE_TO_TRANSPOSE
        return cls(version, packed, values.t().contiguous() if is_small else None)


# By the identity of the weight: layers that share a weight share its copy.
_PACKS: WeakValueDictionary[tuple[int, torch.dtype], _Pack] = WeakValueDictionary()


class FixedProduct:
    """Products with a small weight as it was when this was made, by one operator each, for inputs of two dimensions.

    Args:
        pack: Copies of the weight.
    """

    def __init__(self, pack: _Pack) -> None:
        self.weight, self.packed = pack.version.values, pack.packed
        self.plain = pack.version.values.t()
        self.transposed = self.plain if pack.transposed is None else pack.transposed
        self.max_rows_transposed = 0 if pack.transposed is None else _MAX_ROWS_TRANSPOSED

    def __call__(self, x: Tensor) -> Tensor:
        """Give ``x @ weight.T``."""
        if len(x) <= self.max_rows_transposed:
            return torch.mm(x, self.transposed)
        if torch.compiler.is_compiling():
            return torch.mm(x, self.plain)
        return _packed_product(x, self.packed, None)

    def plus(self, x: Tensor, y: Tensor) -> Tensor:
        """Give ``x + y @ weight.T``."""
        if len(y) <= self.max_rows_transposed:
            return torch.addmm(x, y, self.transposed)
        if torch.compiler.is_compiling():
            return torch.addmm(x, y, self.plain)
        return torch.ops.mkldnn._linear_pointwise.binary(y, x, self.packed, None, "add")


class WrittenProduct:
    """Products with a weight as it was when this was made, in the operators that Inductor makes the fastest code of.

    One row is written as a sum of products, which it compiles into one loop over the weight; more rows go to the packed
    kernel.

    Args:
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``, in its precision; None if there is none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        is_packable = weight.device.type == "cpu" and weight.dtype in PACKED_DTYPES
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous()) if is_packable else None

    def __call__(self, x: Tensor) -> Tensor:
        """Give ``x @ weight.T + bias`` in the weight's precision, ``(..., out_features)`` of ``(..., in_features)``."""
        weight, x = self.weight, x.to(self.weight.dtype)
        if x.numel() == x.shape[-1]:
            row = x.view(1, -1)
            if weight.dtype == torch.bfloat16:  # sums of products are kept in float32, as kernels do
                row, weight = row.float(), weight.float()
            product = (row * weight).sum(dim=-1).to(x.dtype).view(*x.shape[:-1], -1)
            return product if self.bias is None else product + self.bias
        return F.linear(x, weight, self.bias) if self.packed is None else _packed_product(x, self.packed, self.bias)

    def plus(self, x: Tensor, y: Tensor) -> Tensor:
        """Give ``x + y @ weight.T + bias``."""
        return x + self(y)


class PackedLinear(nn.Linear):
    """A linear layer with a second copy of its weight, packed for products with few rows on a CPU.

    It computes what the plain layer does, up to rounding. The copy is made when it is first needed, and again when the
    weight has changed: by an optimizer, by loading, by moving, by another tensor in its place. A change in place that
    autograd does not see (``weight.data += ...``) must be told to it by ``torch.autograd.graph.increment_version``.
    Where the packed kernel cannot be used (gradients are recorded, another device or precision, a compiled function),
    the plain one is.

    Args:
        layer: Its weight and bias are shared.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)
        self._packs: dict[torch.dtype, _Pack] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Give ``x @ weight.T + bias``, ``(..., out_features)``, for ``x`` of ``(..., in_features)``."""
        dtype, is_fit = self.weight.dtype, x.dtype == self.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype, is_fit = torch.get_autocast_dtype("cpu"), x.dtype in PACKED_DTYPES
        if not is_fit or torch.is_grad_enabled() or torch.compiler.is_compiling() or not self._can_pack(dtype):
            return F.linear(x, self.weight, self.bias)
        return self._multiply(dtype, x)

    def as_function(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Give what it does to inputs in one precision without gradients, and without the checks of a call.

        Args:
            dtype: Precision of the product, and of the weight's copy; inputs are converted to it.
        """
        if self._can_pack(dtype) and not self._forward_hooks and not self._forward_pre_hooks:
            return partial(self._multiply, dtype)
        return self if dtype == self.weight.dtype else partial(self._call_under_autocast, dtype)

    def as_fixed(self) -> FixedProduct | None:
        """Give the products with the weight as it is now; None with a bias, hooks, or a weight that is large."""
        is_plain = self.bias is None and not self._forward_hooks and not self._forward_pre_hooks
        is_small, dtype = self.weight.numel() < _MIN_SIZE_TO_FILL_UP, self.weight.dtype
        return FixedProduct(self._pack(dtype)) if is_plain and is_small and self._can_pack(dtype) else None

    def as_plain(self) -> nn.Linear:
        """Give a plain layer that shares weight and bias."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def _can_pack(self, dtype: torch.dtype) -> bool:
        weight = self.weight
        return (
            weight.device.type == "cpu"
            and dtype in PACKED_DTYPES
            and weight.dtype in PACKED_DTYPES
            and not weight.is_inference()  # autograd does not count the changes of these
        )

    def _pack(self, dtype: torch.dtype) -> _Pack:
        """Give the weight's copy, made again if the weight has changed."""
        weight, pack = self.weight, self._packs.get(dtype)
        if pack is None or not pack.version.is_current(weight):
            pack = _PACKS.get((id(weight), dtype))
            if pack is None or not pack.version.is_current(weight):
                pack = _PACKS[id(weight), dtype] = _Pack.of(weight, dtype)
            self._packs[dtype] = pack
        return pack

    def _multiply(self, dtype: torch.dtype, x: Tensor) -> Tensor:
        """Choose the kernel by the number of rows and the size of the weight."""
        bias: Tensor | None = self.bias
        if x.dtype != dtype:
            x = x.to(dtype)
        if bias is not None and bias.dtype != dtype:
            bias = bias.to(dtype)
        if torch.compiler.is_compiling():
            return F.linear(x, self.weight.to(dtype), bias)
        pack = self._pack(dtype)
        num_rows = x.numel() // self.in_features
        if num_rows <= _MAX_ROWS_TRANSPOSED and pack.transposed is not None:
            product = torch.matmul(x, pack.transposed)
            return product if bias is None else product + bias
        if 0 < num_rows < _FULL_ROWS and self.weight.numel() >= _MIN_SIZE_TO_FILL_UP:
            rows = x.new_zeros(_FULL_ROWS, self.in_features)
            rows[:num_rows] = x.reshape(num_rows, self.in_features)
            return _packed_product(rows, pack.packed, bias)[:num_rows].view(*x.shape[:-1], self.out_features)
        return _packed_product(x, pack.packed, bias)

    def _call_under_autocast(self, dtype: torch.dtype, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return self(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Drop the copies when the layer is moved or converted."""
        self._packs.clear()
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weight's copies out of what is copied or pickled: they are made again."""
        return {**self.__dict__, "_packs": {}}


def is_plain_linear(module: nn.Module, may_have_bias: bool = False) -> bool:
    """Tell whether a module is a linear layer, without bias unless it may have one, and with nothing added to it."""
    is_known = type(module) in (nn.Linear, PackedLinear) and (may_have_bias or getattr(module, "bias", None) is None)
    return is_known and not module._forward_hooks and not module._forward_pre_hooks


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
