"""What a forward pass keeps for the backward pass, in bytes, on any device: on the meta device nothing is computed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def saved_bytes(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Count the bytes that autograd saves during a forward pass.

    Args:
        forward: Gives a loss.
        weights: Parameters and buffers, which are there anyway and do not count.

    Returns:
        Bytes of the distinct storages that are saved and hold none of the weights.
    """
    of_weights = {StorageWeakRef(weight.untyped_storage()) for weight in weights}
    saved: dict[StorageWeakRef, Tensor] = {}  # keeps them, so that no other takes the place of one that is freed

    def keep(tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in of_weights:
            saved[storage] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class AsOnGpu(TorchFunctionMode):
    """Lets attention on the meta device save what the fused kernels of GPUs save, and not the scores.

    These are query, key, value, the result, the logarithm of each row's sum in float32, and the mask as a bias in the
    precision of the query.

    Language models of transformers ask whether positions follow one upon the other, which the meta device cannot tell;
    here they do.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace `scaled_dot_product_attention`, and answer for tensors without values."""
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        mask = given.get("attn_mask")
        if mask is not None:
            mask = torch.empty_like(mask, dtype=given["query"].dtype)
        return _SavesAsFused.apply(given["query"], given["key"], given["value"], mask)


class _SavesAsFused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, log_sums, mask)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
