"""Building of objects from `{class_path, init_args}` descriptions."""

from __future__ import annotations

from typing import Any

from experiments.annotations import convert
from experiments.checks import is_spec, parameters_of, resolve_class_path
from experiments.errors import ConfigError, join, text_of


def build(node: Any, path: str) -> Any:
    """Build what a configuration node describes, the innermost objects first.

    Args:
        node: A plain value, or `{class_path, init_args}`, or a list or mapping that may contain such.
        path: YAML path of the node.

    Returns:
        The object; lists and mappings with their objects built; plain values as they are.

    Raises:
        ConfigError: A constructor refused its arguments with a `ValueError` or `FileNotFoundError`.
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
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(path, text_of(error)) from error
