"""Building of objects from `{class_path, init_args}` descriptions."""

from __future__ import annotations

from typing import Any

from experiments.engine.annotations import convert
from experiments.engine.checks import is_spec, parameters_of, resolve_class_path
from experiments.engine.errors import ConfigError, join, text_of
from lightning_modules.errors import UserError

ROOMS = ("callbacks", "datamodules", "experiments", "lightning_modules", "tests")


def build(node: Any, path: str) -> Any:
    """Build what a configuration node describes, the innermost objects first.

    Args:
        node: A plain value, or `{class_path, init_args}`, or a list or mapping that may contain such.
        path: YAML path of the node.

    Returns:
        The object; lists and mappings with their objects built; plain values as they are.

    Raises:
        ConfigError: A constructor refused its arguments: ours with a `UserError` or `FileNotFoundError`, one of an
            installed library also with any other `ValueError`.
    """
    if isinstance(node, list):
        return [build(item, join(path, index)) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if not is_spec(node):
        return {key: build(item, join(path, key)) for key, item in node.items()}
    target = resolve_class_path(node["class_path"], path)
    arguments = build(node.get("init_args") or {}, join(path, "init_args"))
    parameters = parameters_of(target)
    converted = {
        key: convert(value, parameters[key].annotation) if key in parameters else value
        for key, value in arguments.items()
    }
    try:
        return target(**converted)
    except ValueError as error:
        if isinstance(error, UserError) or not is_ours(target):
            raise ConfigError(path, text_of(error)) from error
        raise
    except FileNotFoundError as error:
        raise ConfigError(path, text_of(error)) from error


def is_ours(target: Any) -> bool:
    """Tell whether a class or function is of this repository."""
    return str(getattr(target, "__module__", "")).split(".")[0] in ROOMS
