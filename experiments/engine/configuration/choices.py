"""Named alternatives of an experiment file: `size=paper` lays what stands under `choices.size.paper` over the rest."""

from __future__ import annotations

from typing import Any

from experiments.engine.configuration.errors import ConfigError, did_you_mean, join

CHOICES = "choices"


def choose(content: dict[str, Any], overrides: list[str], keys: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """Take the alternatives that overrides choose, and the first one where none does.

    Args:
        content: An experiment file with its parents.
        overrides: Texts like `size=paper`, among others.
        keys: Keys of an experiment, which no choice may be called by.

    Returns:
        Mappings to lay over the file, and the overrides that are none of these choices.

    Raises:
        ConfigError: `choices` is no mapping of mappings, or there is no such alternative.
    """
    choices = _choices_of(content)
    for name in choices:
        if name in keys:
            raise ConfigError(join(CHOICES, name), f"{name} is a key of an experiment; call the choice otherwise")
    chosen = {name: str(next(iter(alternatives))) for name, alternatives in choices.items()}
    others = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if equals and name in choices:
            chosen[name] = value
        else:
            others.append(text)
    return [_find(choices[name], name, value) for name, value in chosen.items()], others


def describe_choices(content: dict[str, Any]) -> dict[str, str]:
    """Return what one may choose of an experiment file, by choice.

    Raises:
        ConfigError: `choices` is no mapping of mappings.
    """
    return {
        name: ", ".join(f"{one}{'' if number else ' if left out'}" for number, one in enumerate(alternatives))
        for name, alternatives in _choices_of(content).items()
    }


def _choices_of(content: dict[str, Any]) -> dict[str, dict[Any, Any]]:
    choices = content.get(CHOICES)
    if choices is None:
        return {}
    if not isinstance(choices, dict):
        raise ConfigError(CHOICES, f"expected a mapping of names to alternatives, got {choices!r}")
    for name, alternatives in choices.items():
        if not isinstance(alternatives, dict) or not alternatives:
            raise ConfigError(join(CHOICES, name), f"expected a mapping of alternatives, got {alternatives!r}")
    return choices


def _find(alternatives: dict[Any, Any], name: str, value: str) -> dict[str, Any]:
    by_name = {str(one): keys for one, keys in alternatives.items()}
    if value not in by_name:
        raise ConfigError(name, f"there is no {name} {value}; {did_you_mean(value, by_name)}")
    found = by_name[value]
    path = join(join(CHOICES, name), value)
    if not isinstance(found, dict):
        raise ConfigError(path, f"expected the keys that it changes, {{}} for none, got {found!r}")
    if "base" in found or CHOICES in found:
        raise ConfigError(path, f"base and {CHOICES} belong to the file itself; move them there")
    return found
