"""LoRA on one module, in place: matrices beside its linear layers, PEFT folders, merging.

The module keeps its class, so that a talker stays a talker; adapters are told apart by their names.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least, require_below_one, require_positive
from lightning_modules.pretrained.matching_weights import refuse_other_weights
from lightning_modules.pretrained.meta_device import is_on_meta

ALL_LINEAR = "all-linear"
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # of peft's files, whose modules are wrapped
# Heads that peft's "all-linear" leaves out of language models, too: they are as large as the vocabulary.
_LANGUAGE_MODEL_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True)
class LoraSettings:
    """What is put beside the linear layers of one module.

    Attributes:
        rank: Rank of the matrices.
        alpha: Scale; twice the rank if None.
        dropout: Dropout before the matrices.
        targets: Layers that get matrices: "all-linear" (all but the head of a language model), names of layers or
            endings of their dotted names, or one regular expression that matches whole dotted names; none if only
            modules_to_save are to train.
        modules_to_save: Names of modules that train in full instead, for instance embeddings and heads of tokens that
            the base hardly knew; each adapter has a copy of its own. A head that is tied to one stays tied.

    Raises:
        UserError: If a number is out of range, or there are neither targets nor modules_to_save.

    Reference: arXiv 2106.09685.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | Sequence[str] = ALL_LINEAR
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least(1, lora_rank=self.rank)
        require_positive(lora_alpha=self.alpha)
        require_below_one(lora_dropout=self.dropout)
        if not self.targets and not self.modules_to_save:
            raise UserError(f"lora_targets is {self.targets!r}; name layers, or write {ALL_LINEAR}")


def adapter_names(module: nn.Module) -> list[str]:
    """Name the adapters of a module, in the order in which they came."""
    return list(_configs(module))


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Give the layers of a module that have LoRA matrices, by name."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer))


def full_copies(module: nn.Module) -> Iterator[tuple[str, ModulesToSaveWrapper]]:
    """Give the modules of which adapters hold copies that train in full, by name."""
    return ((name, one) for name, one in module.named_modules() if isinstance(one, ModulesToSaveWrapper))


def adapters_in_use(layer: BaseTunerLayer | ModulesToSaveWrapper) -> list[str]:
    """Name the adapters of a layer that act: none while they are switched off."""
    return [] if layer.disable_adapters else list(layer.active_adapters)


def add_adapter(module: nn.Module, name: str, settings: LoraSettings) -> None:
    """Freeze a module and put trainable LoRA matrices beside its layers; at first they change nothing.

    Args:
        module: Any module; a causal LM of transformers, if its folder is to be read by peft and transformers alone.
        name: Name of the adapter.
        settings: Rank, scale and targets.

    Raises:
        UserError: If a target matches no layer, or the module has an adapter of this name.
    """
    _refuse_duplicate(module, name)
    scale = 2 * settings.rank if settings.alpha is None else settings.alpha
    to_save = _resolve_modules_to_save(module, settings.modules_to_save)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=scale,
        lora_dropout=settings.dropout,
        target_modules=_resolve_targets(module, settings.targets, to_save),
        modules_to_save=to_save or None,
        ensure_weight_tying=bool(to_save) and _has_tied_embeddings(module),
        base_model_name_or_path=getattr(module, "name_or_path", None) or None,
        task_type="CAUSAL_LM" if hasattr(module, "lm_head") else None,
    )
    module.requires_grad_(False)
    _inject(config, module, name)
    for parameter in module.parameters():
        if parameter.requires_grad:  # small steps of an optimizer are lost in 16 bits
            parameter.data = parameter.data.float()


def select_adapters(module: nn.Module, names: Sequence[str]) -> None:
    """Let some adapters of a module act, added up, or none; what trains stays as it is.

    Args:
        module: Any module.
        names: Adapters; those that a layer does not have leave it as it is.
    """
    # peft lets what is active train, and nothing else
    trains = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for _, layer in lora_layers(module):
        active = [name for name in names if name in layer.lora_A]
        if active:
            layer.set_adapter(active)
        layer.enable_adapters(bool(active))
    for _, copies in full_copies(module):
        chosen = _chosen_copy(copies, names)
        if chosen is not None:
            copies.set_adapter(chosen)
        copies.enable_adapters(chosen is not None)
    for parameter, requires_grad in trains:
        parameter.requires_grad_(requires_grad)


def save_adapter(module: nn.Module, name: str, folder: Path) -> None:
    """Write a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

    Matrices that are split over devices are gathered on all of them, which all call this; the first one writes.
    """
    # cloned, since a head that is tied to its embedding shares its memory
    weights = {key: _whole(value).cpu().contiguous().clone() for key, value in _adapter_weights(module, name).items()}
    if distributed.is_initialized() and distributed.get_rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_PREFIX + key: value for key, value in weights.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    replace(_configs(module)[name], inference_mode=True).save_pretrained(str(folder))


def load_adapter(module: nn.Module, name: str, folder: Path) -> None:
    """Read a PEFT folder into a module, frozen; it is the one that acts then.

    Args:
        module: The module that the adapter was trained on.
        name: What the adapter is called here.
        folder: What :func:`save_adapter`, or peft, has written.

    Raises:
        FileNotFoundError: If it is no PEFT folder.
        UserError: If it holds no LoRA, or any weight is missing, unexpected or of another shape.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"adapter {name}: {folder} has no {file}; give a PEFT folder")
    _refuse_duplicate(module, name)
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise UserError(f"adapter {name}: {folder} holds {config.peft_type}, not LoRA; give a LoRA adapter")
    found = load_file(folder / WEIGHTS_FILE)
    weights = {key.removeprefix(_PREFIX): value for key, value in found.items()}
    requires_grad = {id(one) for one in module.parameters() if one.requires_grad}
    try:
        _inject(config, module, name)
    except ValueError as error:
        raise UserError(f"adapter {name}: {folder} does not fit: {str(error).splitlines()[0]}") from error
    expected, given = (
        {key: value.shape for key, value in one.items()} for one in (_adapter_weights(module, name), weights)
    )
    what = f"adapter {name}: {folder} does not fit its base"
    refuse_other_weights(expected, given, what, "give the adapter of this very module")
    if not is_on_meta():  # where settings are checked, and nothing can be copied
        set_peft_model_state_dict(module, weights, name)
    for parameter in module.parameters():  # peft makes what it injects trainable
        parameter.requires_grad_(id(parameter) in requires_grad)
    select_adapters(module, [name])


def merge_adapters(module: nn.Module, names: Sequence[str]) -> None:
    """Add adapters' matrices to the weights beside them, keep their copies, and take all that LoRA put there out."""
    for path, layer in list(lora_layers(module)):
        layer.merge(adapter_names=[name for name in names if name in layer.lora_A])
        increment_version(layer.get_base_layer().weight)  # peft writes past autograd, by which copies see the change
        parent, _, last = path.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())
    for path, copies in list(full_copies(module)):
        chosen = _chosen_copy(copies, names)
        parent, _, last = path.rpartition(".")
        kept = copies.original_module if chosen is None else copies.modules_to_save[chosen]
        setattr(module.get_submodule(parent), last, kept)
    if hasattr(module, "peft_config"):
        del module.peft_config


def with_merged_adapters(module: nn.Module) -> nn.Module:
    """Copy a module with the adapters in use added to the weights, which runs faster and gives what it gives.

    Args:
        module: Parts of it may have adapters of their own; it stays as it is.

    Returns:
        The copy; the module itself if it has no LoRA, or has it beside weights of a lower precision than float32, which
        small changes would be rounded away in.
    """
    layers = [layer for _, layer in lora_layers(module)]
    if not layers or any(layer.get_base_layer().weight.dtype != torch.float32 for layer in layers):
        return module
    copied = copy.deepcopy(module)
    for part in copied.children():
        wrapped = (*lora_layers(part), *full_copies(part))
        merge_adapters(part, list(dict.fromkeys(name for _, one in wrapped for name in adapters_in_use(one))))
    return copied


def _chosen_copy(copies: ModulesToSaveWrapper, names: Sequence[str]) -> str | None:
    """Name the adapter whose copy acts: the last one that has any, for copies cannot be added up."""
    return next((name for name in reversed(names) if name in copies.modules_to_save), None)


def _whole(weight: Tensor) -> Tensor:
    """Gather a matrix that is split over devices."""
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()


def _adapter_weights(module: nn.Module, name: str) -> dict[str, Tensor]:
    return get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)


def _inject(config: LoraConfig, module: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is meant
        warnings.filterwarnings("ignore", "You have requested `ensure_weight_tying`, but no tied")  # see below
        inject_adapter_in_model(config, module, name)
    if config.ensure_weight_tying:
        _tie(module, name)


def _tie(module: nn.Module, name: str) -> None:
    """Tie the copy of a head to that of its embedding, which peft does for the first adapter of a module alone."""
    wrapped = [one for _, one in full_copies(module)]
    for one in wrapped:
        sources = [other for other in wrapped if other.original_module.weight is one.original_module.weight]
        source = next((other for other in sources if name in other.modules_to_save), None)
        if source is not None and name not in one.modules_to_save:
            one.update(name, tied_module=source.modules_to_save[name])


def _configs(module: nn.Module) -> dict[str, LoraConfig]:
    return cast(dict[str, LoraConfig], getattr(module, "peft_config", {}))


def _refuse_duplicate(module: nn.Module, name: str) -> None:
    if name in _configs(module):
        raise UserError(f"the module has an adapter {name!r} already; merge it first, or give another name")


def _has_tied_embeddings(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "config", None), "tie_word_embeddings", False))


def _resolve_modules_to_save(module: nn.Module, names: Sequence[str]) -> list[str]:
    """Give the names of modules that train in full, and refuse what matches nothing."""
    there = {name.rsplit(".", 1)[-1] for name, one in module.named_modules() if name and list(one.parameters())}
    if missing := sorted(set(names) - there):
        choice = sorted(one for one in there if not one.isdecimal())
        raise UserError(f"lora_modules_to_save: there are no {missing} here; choose among {choice}")
    return list(names)


def _resolve_targets(module: nn.Module, targets: str | Sequence[str], to_save: Sequence[str]) -> str | list[str]:
    """Give what peft is to match, and refuse what matches nothing."""
    if not targets:
        return DUMMY_TARGET_MODULES  # peft's word for an adapter without matrices
    linear = [
        name.replace(".base_layer", "")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and ".lora_" not in name
        and not {*to_save, "modules_to_save"} & {*name.split(".")}
    ]
    last_names = sorted({name.rsplit(".", 1)[-1] for name in linear} - set(_LANGUAGE_MODEL_HEADS))
    if not last_names:
        raise UserError("lora_targets: this part has no linear layers; leave it out of lora")
    if targets == ALL_LINEAR:
        return last_names
    if isinstance(targets, str):
        try:
            matched = any(re.fullmatch(targets, name) for name in linear)
        except re.error as error:
            raise UserError(f"lora_targets {targets!r} is no regular expression ({error})") from error
        missing = [] if matched else [targets]
    else:
        missing = sorted(one for one in targets if not any(f".{name}".endswith(f".{one}") for name in linear))
    if missing:
        raise UserError(
            f"lora_targets: {missing} are no linear layers here; choose among {last_names}, or {ALL_LINEAR}"
        )
    return targets if isinstance(targets, str) else list(targets)
