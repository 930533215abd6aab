"""What of a thinker is split over devices, and the splitting, by FSDP2."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lightning_modules.thinker.thinker import Thinker


@dataclass(frozen=True)
class Shard:
    """A part whose layers are gathered one by one, and whose other weights are gathered together.

    Attributes:
        root: The part. Its own weights stay whole from their first use in a step up to the optimizer's step; if they
            are frozen, for good.
        layers: Modules inside it, each whole only while it computes.
        methods: Methods of the part that use its weights beside ``forward``.
    """

    root: nn.Module
    layers: Sequence[nn.Module] = ()
    methods: tuple[str, ...] = ()


def shards_of(thinker: Thinker) -> list[Shard]:
    """Name the parts of a thinker that are split.

    Whatever the thinker is asked for, it uses weights through these parts alone, so that each of its methods works. The
    embedding and the output head of the language model belong to one group: they may share a weight.
    """
    language_model, speech_encoder = thinker.language_model, thinker.speech_encoder
    return [
        Shard(speech_encoder, _longest_list(speech_encoder)),
        Shard(thinker.adaptor),
        Shard(language_model, _longest_list(language_model), ("embed", "logits", "score")),
    ]


def _longest_list(part: nn.Module) -> list[nn.Module]:
    """Give the layers of a transformer, whatever the attribute is called that holds them."""
    lists = [list(module) for module in part.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def split(shards: Iterable[Shard], mesh: DeviceMesh, compute_dtype: torch.dtype | None) -> None:
    """Split the weights of parts, as the first device has them, over the devices of a mesh.

    Args:
        shards: What to split.
        mesh: One-dimensional.
        compute_dtype: Dtype that weights are gathered and used in, whatever they are kept in; None for their own.
            Gradients are reduced in float32.
    """
    reduce_dtype = None if compute_dtype is None else torch.float32
    # The parts cast what they are given: a waveform must not lose its low bits.
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype, cast_forward_inputs=False)
    for shard in shards:
        for layer in shard.layers:
            take_from_first(layer, mesh)
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        take_from_first(shard.root, mesh)
        root = fully_shard(shard.root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        # Its methods are called several times in a step, and would gather the weights each time.
        root.set_reshard_after_backward(False, recurse=False)
        for method in shard.methods:
            register_fsdp_forward_method(root, method)


def take_from_first(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give the weights that are whole the values of the first device, as DDP does, whatever each has drawn."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(mesh.device_type)
                distributed.broadcast(parameter.data, 0, group=mesh.get_group())


def release_roots(shards: Iterable[Shard]) -> None:
    """Let go of the whole weights that :func:`split` kept, if the optimizer is about to change them."""
    for shard in shards:
        of_layers = {id(parameter) for layer in shard.layers for parameter in layer.parameters()}
        own = [parameter for parameter in shard.root.parameters() if id(parameter) not in of_layers]
        if isinstance(shard.root, FSDPModule) and any(parameter.requires_grad for parameter in own):
            shard.root.reshard()


def gather(shards: Iterable[Shard]) -> None:
    """Hold all weights whole on each device, so that devices may compute different numbers of passes."""
    for module, _ in _split_modules(shards):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(shards: Iterable[Shard]) -> None:
    """Undo :func:`gather`."""
    for module, is_layer in _split_modules(shards):
        module.set_reshard_after_forward(is_layer, recurse=False)
        module.reshard()


def _split_modules(shards: Iterable[Shard]) -> Iterator[tuple[FSDPModule, bool]]:
    """Give what was split, roots first, and whether it is a layer."""
    for shard in shards:
        for module in (shard.root, *shard.layers):
            if isinstance(module, FSDPModule):
                yield module, module is not shard.root


def average_whole_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over the devices the gradients of parameters that each device has whole; FSDP2 does it for the others."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    for work in [distributed.all_reduce(gradient, async_op=True) for gradient in whole]:
        work.wait()
    torch._foreach_div_(whole, float(distributed.get_world_size())) if whole else None


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients by their norm over all devices.

    Args:
        parameters: All split, or all whole.
        max_norm: Largest norm.

    Returns:
        The norm before, a scalar.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
