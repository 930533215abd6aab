"""Checkpoints that hold what trains: frozen parts come from where they came from when they are built again."""

from typing import Any

from torch import nn

from lightning_modules.pretrained.matching_weights import refuse_other_weights

LEFT_OUT = "left_out"


def frozen_keys(module: nn.Module) -> set[str]:
    """Name the entries of a state_dict that no training changes: frozen parameters, and buffers beside nothing else."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    frozen = set()
    for key in module.state_dict():
        folder, owner = key, [parameters[key]] if key in parameters else []
        while not owner and folder:
            folder = folder.rpartition(".")[0]
            owner = list(module.get_submodule(folder).parameters())
        if owner and not any(parameter.requires_grad for parameter in owner):
            frozen.add(key)
    return frozen


def leave_frozen_out(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Take frozen entries out of a checkpoint's `state_dict`, and name them under `left_out`."""
    checkpoint[LEFT_OUT] = sorted(frozen_keys(module))
    for key in checkpoint[LEFT_OUT]:
        checkpoint["state_dict"].pop(key, None)


def refuse_unfit(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Refuse a checkpoint whose entries, with those that it left out, are not those of a module.

    Raises:
        UserError: If any is missing or unexpected.
    """
    expected = set(module.state_dict()) - set(checkpoint.get(LEFT_OUT, ()))
    found = set(checkpoint["state_dict"])
    refuse_other_weights(
        dict.fromkeys(expected),
        dict.fromkeys(found),
        "the checkpoint does not fit this module",
        "start a new run, or give the configuration that it was trained with",
    )
