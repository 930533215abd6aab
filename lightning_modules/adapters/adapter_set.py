"""Adapters of a whole system: one name stands for the LoRA matrices of several of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightning_modules.adapters.lora import (
    CONFIG_FILE,
    LoraSettings,
    adapter_names,
    add_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    select_adapters,
)
from lightning_modules.errors import UserError
from lightning_modules.pretrained.meta_device import is_on_meta
from lightning_modules.training.seeding import derive_seed

TRAINED = "trained"  # the adapter that learns here


@dataclass(frozen=True)
class AdapterFolder:
    """Where an adapter comes from.

    Attributes:
        folder: Holds one PEFT folder per part, named after the part; several if parts were trained one behind the
            other.
        parts: Which of them are used; all if None.
    """

    folder: str | Sequence[str]
    parts: Sequence[str] | None = None


class AdapterSet:
    """Named adapters over the parts of a system.

    LoRA matrices that a part came with belong to the base: they act under every adapter.

    Args:
        parts: The modules that may have LoRA matrices, by name.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = dict(parts)
        self._parts_of: dict[str, list[str]] = {}
        self._base = {part: adapter_names(module) for part, module in self.parts.items()}

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they came."""
        return list(self._parts_of)

    def parts_of(self, name: str) -> list[str]:
        """Name the parts that an adapter changes."""
        return list(self._parts_of[name])

    def train(self, settings: Mapping[str, LoraSettings], seed: int) -> None:
        """Freeze the named parts under new, trainable matrices, the adapter "trained".

        Args:
            settings: What to put there, by part.
            seed: With the part's name, of its initial matrices.

        Raises:
            UserError: If there is no such part, or a target matches none of its layers.
        """
        for part, one in settings.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "lora", part))
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
            UserError: If the name is taken, a part does not exist or does not fit, or two folders hold it.
        """
        if name in self._parts_of:
            raise UserError(f"there are two adapters {name!r}; give each a name of its own")
        folders = [Path(one) for one in ([source.folder] if isinstance(source.folder, str) else source.folder)]
        if is_on_meta() and not all(folder.is_dir() for folder in folders):
            self._parts_of[name] = list(source.parts or ())
            return
        where: dict[str, Path] = {}
        for folder in folders:
            found = sorted(one.parent.name for one in folder.glob(f"*/{CONFIG_FILE}"))
            if not found:
                raise FileNotFoundError(
                    f"adapter {name}: {folder} holds no PEFT folders; give one that a run has written"
                )
            if twice := sorted(set(found) & set(where)):
                raise UserError(f"adapter {name}: {folder} and {where[twice[0]]} both hold {twice[0]}; leave one out")
            where |= dict.fromkeys(found, folder)
        wanted = sorted(where) if source.parts is None else list(source.parts)
        for part in wanted:
            module = self._part(part, f"adapter {name}")
            if part not in where:
                raise FileNotFoundError(f"adapter {name}: {folders} hold no {part}; there are {sorted(where)}")
            load_adapter(module, name, where[part] / part)
        self._parts_of[name] = wanted

    def select(self, name: str | None) -> None:
        """Let one adapter act on its parts, and none on all others; None gives the base.

        Raises:
            UserError: If there is no such adapter.
        """
        self.check(name)
        for part, module in self.parts.items():
            select_adapters(module, self._active(name, part))

    def check(self, name: str | None) -> None:
        """Refuse a name that no adapter has.

        Raises:
            UserError: If it is unknown.
        """
        if name is not None and name not in self._parts_of:
            raise UserError(f"there is no adapter {name!r}; there are {self.names}")

    def save(self, name: str, folder: Path) -> None:
        """Write one PEFT folder per part of an adapter, named after the part.

        Raises:
            UserError: If there is no such adapter.
        """
        self.check(name)
        for part in self._parts_of[name]:
            save_adapter(self.parts[part], name, folder / part)

    def merge(self, name: str | None) -> bool:
        """Add an adapter, and what the base came with, to the weights; all LoRA layers are gone then.

        Returns:
            Whether there was anything to add.

        Raises:
            UserError: If there is no such adapter.
        """
        self.check(name)
        has_merged = any(self._active(name, part) for part in self.parts)
        for part, module in self.parts.items():
            merge_adapters(module, self._active(name, part))
        self._parts_of.clear()
        self._base = {part: [] for part in self.parts}
        return has_merged

    def _active(self, name: str | None, part: str) -> list[str]:
        chosen = [] if name is None or part not in self._parts_of[name] else [name]
        return self._base[part] + chosen

    def _part(self, name: str, where: str) -> nn.Module:
        if name not in self.parts:
            raise UserError(f"{where}: there is no part {name!r}; there are {sorted(self.parts)}")
        return self.parts[name]


def adapt(
    parts: Mapping[str, nn.Module],
    lora: Mapping[str, LoraSettings],
    adapters: Mapping[str, AdapterFolder | None],
    seed: int,
) -> AdapterSet:
    """Load adapters, put new LoRA matrices beside them if some are to train, and let those act; else the base acts.

    Args:
        parts: The modules that may have LoRA matrices, by name.
        lora: What trains, by part.
        adapters: What was trained before, by the adapter's name; None leaves one out.
        seed: Of the new matrices.

    Raises:
        FileNotFoundError: If a folder is missing.
        UserError: If something does not fit.
    """
    found = AdapterSet(parts)
    for name, source in adapters.items():
        if source is not None:
            found.load(name, source)
    found.train(lora, seed)
    found.select(TRAINED if lora else None)
    return found


def refuse_unadapted(lora: Mapping[str, LoraSettings], trained: Sequence[str]) -> None:
    """Refuse LoRA that leaves a part which has a loss without anything to train, or the other way round.

    Args:
        lora: Settings by part, "thinker.<part>" or "talkers.<name>".
        trained: What has a loss: "thinker", if it has an objective, and the names of talkers.

    Raises:
        UserError: If a talker, or the thinker, has a loss but no LoRA matrices, or matrices but no loss.
    """
    owners = {part.removeprefix("talkers.") if part.startswith("talkers.") else part.split(".")[0] for part in lora}
    for name in trained:
        if name not in owners:
            raise UserError(f"lora: {name} has a loss but nothing to train; name a part of it in lora, or leave it out")
    if untaught := sorted(owners - set(trained)):
        raise UserError(
            f"lora: nothing teaches {untaught}; give a thinker_objective for the thinker, and talkers that are there"
        )
