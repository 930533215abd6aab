"""What an experiment says of itself on the command line."""

from __future__ import annotations

from pathlib import Path

from experiments.engine.configuration import config
from experiments.engine.configuration.checks import MISSING
from experiments.engine.configuration.choices import describe_choices
from experiments.engine.configuration.overrides import aliases_of


def describe_file(file: Path) -> str:
    """Return what an experiment is, and what one sets of it on the command line: choices, short names and inputs.

    Raises:
        ConfigError: It cannot be read, or has a key of the wrong type.
    """
    content = config.read_file(file)
    aliases = aliases_of(content)
    shown = describe_choices(content)
    shown |= {name: alias.help or f"the same as {alias.key}" for name, alias in aliases.items()}
    for name, value in (content.get("inputs") or {}).items():
        if f"inputs.{name}" not in {alias.key for alias in aliases.values()}:
            shown[f"inputs.{name}"] = "has to be given" if value == MISSING else f"{value} if left out"
    width = max(map(len, shown), default=0)
    head = f"{config.shipped_name(file)}: {content.get('description', '')}".rstrip(": ")
    return "\n".join([head, *(f"  {name + '=':<{width + 1}}  {text}" for name, text in shown.items())])
