"""Adapters of a whole system: one name stands for the LoRA matrices of several of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightning_modules.adapters.lora import (
    CONFIG_FILE,
    LoraSettings,
    add_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    select_adapter,
)
from lightning_modules.errors import UserError

TRAINED = "default"  # what is trained here; peft's own name for an adapter that has none


@dataclass(frozen=True)
class AdapterFolder:
    """Where an adapter comes from.

    Attributes:
        folder: Holds one PEFT folder per part, named after the part.
        parts: Which of them are used; all if None.
    """

    folder: str
    parts: Sequence[str] | None = None


class AdapterSet:
    """Named adapters over the parts of a system.

    Args:
        parts: The modules that may have LoRA matrices, by name.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = dict(parts)
        self._parts_of: dict[str, list[str]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they came."""
        return list(self._parts_of)

    def parts_of(self, name: str) -> list[str]:
        """Name the parts that an adapter changes."""
        return list(self._parts_of[name])

    def train(self, settings: Mapping[str, LoraSettings]) -> None:
        """Freeze the named parts under new, trainable matrices, the adapter "default".

        Raises:
            UserError: If there is no such part, or a target matches none of its layers.
        """
        for part, one in settings.items():
            try:
                add_adapter(self._part(part, f"lora.{part}"), TRAINED, one)
            except UserError as error:
                raise UserError(f"lora.{part}: {error}") from error
        if settings:
            self._parts_of[TRAINED] = list(settings)

    def load(self, name: str, source: AdapterFolder) -> None:
        """Load an adapter from its folder.

        Under ``torch.device("meta")``, where settings are checked before an earlier stage has written the folder, a
        missing one is left alone.

        Raises:
            FileNotFoundError: If there is no such folder, or it holds no PEFT folder.
            UserError: If the name is taken, or a part does not exist or does not fit.
        """
        if name in self._parts_of:
            raise UserError(f"there are two adapters {name!r}; give each a name of its own")
        folder = Path(source.folder)
        found = sorted(one.parent.name for one in folder.glob(f"*/{CONFIG_FILE}"))
        wanted = found if source.parts is None else list(source.parts)
        if torch.get_default_device().type == "meta" and not folder.is_dir():
            self._parts_of[name] = wanted
            return
        if not wanted:
            raise FileNotFoundError(f"adapter {name}: {folder} holds no PEFT folders; give one that a run has written")
        for part in wanted:
            load_adapter(self._part(part, f"adapter {name}"), name, folder / part)
        self._parts_of[name] = wanted

    def select(self, name: str | None) -> None:
        """Let one adapter act on its parts, and none on all others; None gives the base.

        Raises:
            UserError: If there is no such adapter.
        """
        self.check(name)
        for part, module in self.parts.items():
            select_adapter(module, name if name is not None and part in self._parts_of[name] else None)

    def check(self, name: str | None) -> None:
        """Refuse a name that no adapter has.

        Raises:
            UserError: If it is unknown.
        """
        if name is not None and name not in self._parts_of:
            raise UserError(f"there is no adapter {name!r}; there are {self.names}")

    def save(self, name: str, folder: Path) -> None:
        """Write one PEFT folder per part of an adapter, named after the part."""
        for part in self._parts_of[name]:
            save_adapter(self.parts[part], name, folder / part)

    def merge(self, name: str) -> None:
        """Add an adapter to the weights of its parts; all adapters are gone then.

        Raises:
            UserError: If there is no such adapter.
        """
        self.check(name)
        for module in self.parts.values():
            merge_adapter(module, name)
        self._parts_of.clear()

    def _part(self, name: str, where: str) -> nn.Module:
        if name not in self.parts:
            raise UserError(f"{where}: there is no part {name!r}; there are {sorted(self.parts)}")
        return self.parts[name]
