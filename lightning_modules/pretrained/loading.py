"""Loading of pretrained parts, with errors that say how to fix the setting."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_modules.errors import UserError

Loaded = TypeVar("Loaded")

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_pretrained(load: Callable[[str], Loaded], path: str | Path, what: str) -> Loaded:
    """Call ``load(path)`` and explain a failure.

    Args:
        load: The library's loader, such as ``AutoTokenizer.from_pretrained``.
        path: A directory written by ``save_pretrained``, or the name of a model in the local hub cache or on the hub.
        what: What is being loaded, for the error: "speech encoder", "tokenizer".

    Returns:
        What ``load`` returns.

    Raises:
        FileNotFoundError: If there is no such directory, or the loader finds nothing that it can read there.
    """
    if not Path(path).is_dir() and not _HUB_NAME.fullmatch(str(path)):
        raise FileNotFoundError(
            f"{what}: there is no directory {str(path)!r}. Give a directory written by save_pretrained, "
            "or the name of a published model ('organisation/name')."
        )
    try:
        return load(str(path))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{what}: nothing could be loaded from {str(path)!r} ({reason}). Give a directory written by "
            "save_pretrained, or the name of a published model ('organisation/name') that is cached or reachable."
        ) from error


def read_config(path: str | Path, what: str) -> PreTrainedConfig:
    """Read the configuration of a pretrained part, but not its weights.

    Args:
        path: A directory written by ``save_pretrained``, or a published name.
        what: What it is part of, for the error.

    Raises:
        FileNotFoundError: If nothing can be loaded from ``path``.
    """
    return load_pretrained(AutoConfig.from_pretrained, path, what)


def keep_layer_inputs_only(model: PreTrainedModel) -> None:
    """Let a model keep only the input of each layer in training, and compute the layer again in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_attention(name: str) -> None:
    """Refuse an implementation of attention that transformers does not have; "organisation/name" is fetched by it.

    Raises:
        UserError: If the name is unknown.
    """
    names = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if name not in names and "/" not in name:
        raise UserError(f"attention {name!r} is unknown; choose one of {', '.join(sorted(set(names)))}.")


def dtype_from_name(name: str) -> torch.dtype:
    """Turn "float32", "bfloat16" or "float16" into a torch dtype.

    Raises:
        UserError: If the name is another.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in names:
        raise UserError(f"dtype {name!r} is unknown; choose one of {', '.join(names)}.")
    return names[name]
