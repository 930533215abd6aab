"""Prepare a trained network for decoding on a CPU, and take that back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from lightning_modules.talker.network.packed_linear import PackedLinear


def prepare_for_decoding(module: nn.Module) -> int:
    """Put a packed layer in the place of every plain linear layer of a module.

    Parameters, their names and what the module computes stay as they are, training included; the packed copies take as
    much memory again, from the first pass without gradients on. Layers with hooks or of a class of their own are left
    alone; inside LoRA layers, the base and the matrices are packed each by itself.

    Args:
        module: A talker, say, or any other module.

    Returns:
        How many layers are packed now.
    """
    packed: dict[int, PackedLinear] = {}

    def pack(layer: nn.Module) -> nn.Module:
        if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
            return layer
        return packed.setdefault(id(layer), PackedLinear(layer))

    _replace_layers(module, pack)
    return sum(isinstance(one, PackedLinear) for one in module.modules())


def restore_layers(module: nn.Module) -> None:
    """Put plain linear layers back in the place of packed ones, and free the packed copies."""
    plain: dict[int, nn.Linear] = {}

    def restore(layer: nn.Module) -> nn.Module:
        return plain.setdefault(id(layer), layer.as_plain()) if isinstance(layer, PackedLinear) else layer

    _replace_layers(module, restore)


@contextmanager
def prepared_for_decoding(module: nn.Module) -> Iterator[None]:
    """Prepare a module while the context is open."""
    prepare_for_decoding(module)
    try:
        yield
    finally:
        restore_layers(module)


def _replace_layers(module: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and (new := replacement(child)) is not child:
                setattr(parent, name, new)
