"""Building of objects from `{class_path, init_args}` descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.engine.configuration.annotations import convert, dataclass_of, item_annotation
from experiments.engine.configuration.checks import is_spec, parameters_of, resolve_class_path
from experiments.engine.configuration.errors import ConfigError, join, text_of
from lightning_modules.errors import UserError

ROOMS = ("callbacks", "datamodules", "experiments", "lightning_modules", "tests")


def build(node: Any, path: str, annotation: Any = Any) -> Any:
    """Build what a configuration node describes, the innermost objects first.

    Args:
        node: A plain value, or `{class_path, init_args}`, or a list or mapping that may contain such.
        path: YAML path of the node.
        annotation: What is asked for: it tells a tuple from a list and a path from a text, and where a plain mapping
            holds the arguments of a dataclass.

    Returns:
        The object; lists and mappings with their objects built.

    Raises:
        ConfigError: A constructor refused its arguments: ours with a `UserError` or `FileNotFoundError`, one of an
            installed library also with any other `ValueError`.
    """
    if is_spec(node):
        target = resolve_class_path(node["class_path"], path)
        return _construct(target, node.get("init_args") or {}, path, join(path, "init_args"))
    if isinstance(node, dict):
        mapped = dataclass_of(annotation)
        if mapped is not None:
            return _construct(mapped, node, path, path)
        return {key: build(item, join(path, key), item_annotation(annotation, node, key)) for key, item in node.items()}
    if isinstance(node, list):
        node = [build(item, join(path, i), item_annotation(annotation, node, i)) for i, item in enumerate(node)]
    return convert(node, annotation)


def _construct(target: Callable[..., Any], arguments: dict[str, Any], path: str, arguments_path: str) -> Any:
    parameters = parameters_of(target)
    built = {
        key: build(value, join(arguments_path, key), parameters[key].annotation if key in parameters else Any)
        for key, value in arguments.items()
    }
    try:
        return target(**built)
    except ValueError as error:
        if isinstance(error, UserError) or not is_ours(target):
            raise ConfigError(path, text_of(error)) from error
        raise
    except FileNotFoundError as error:
        raise ConfigError(path, text_of(error)) from error


def is_ours(target: Any) -> bool:
    """Tell whether a class or function is of this repository."""
    return str(getattr(target, "__module__", "")).split(".")[0] in ROOMS
