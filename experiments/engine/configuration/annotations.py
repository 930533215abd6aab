"""Plain values against type annotations: whether they fit, what to call the type, what YAML cannot write."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

PLAIN_TYPES = (str, int, float, bool, Path, type(None))
UNCHECKED = (Any, object, inspect.Parameter.empty)


def options(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, nested ones too; any other annotation alone."""
    if typing.get_origin(annotation) is typing.Annotated:
        return options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(leaf for option in typing.get_args(annotation) for leaf in options(option))
    return (type(None),) if annotation is None else (annotation,)


def accepts(value: Any, annotation: Any) -> bool:
    """Tell whether a plain value, list or mapping fits; an annotation that is not understood accepts everything.

    Args:
        value: What YAML gave. The items of lists and mappings are not looked at.
        annotation: An evaluated annotation.
    """
    return any(_accepts_one(value, option) for option in options(annotation))


def item_annotation(annotation: Any, container: list[Any] | dict[Any, Any], key: Any) -> Any:
    """Return the annotation of one item of a list or mapping, `Any` if there is none."""
    for option in options(annotation):
        arguments = typing.get_args(option)
        if not arguments or not _accepts_one(container, option):
            continue
        if isinstance(container, dict):
            return arguments[1] if len(arguments) == 2 else Any
        if typing.get_origin(option) is tuple and Ellipsis not in arguments:
            return arguments[key] if key < len(arguments) else Any
        return arguments[0]
    return Any


def describe(annotation: Any) -> str:
    """Return a short text for an annotation."""
    alternatives = options(annotation)
    if len(alternatives) > 1:
        return " or ".join(dict.fromkeys(describe(option) for option in alternatives))
    (option,) = alternatives
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(repr(argument) for argument in typing.get_args(option))
    if option is type(None):
        return "null"
    if isinstance(option, type) and not typing.get_args(option):
        return option.__name__
    return str(option).replace("typing.", "").replace("collections.abc.", "").replace("pathlib.", "")


def is_class_to_build(annotation: Any) -> bool:
    """Tell whether an annotation is a class whose objects YAML can only describe by `class_path`."""
    return (
        isinstance(annotation, type)
        and not typing.get_args(annotation)
        and annotation not in (*UNCHECKED, *PLAIN_TYPES)
        and annotation.__module__ not in ("builtins", "collections.abc")
        and not getattr(annotation, "_is_protocol", False)
    )


def dataclass_of(annotation: Any) -> Any:
    """Return the dataclass whose arguments a plain mapping holds, None where a mapping itself is asked for."""
    kinds = [option for option in options(annotation) if isinstance(option, type) and is_dataclass(option)]
    return kinds[0] if len(kinds) == 1 and not accepts({}, annotation) else None


def convert(value: Any, annotation: Any) -> Any:
    """Return a plain value, or a list, as the `Path`, `float` or `tuple` that YAML cannot write."""
    kinds = [typing.get_origin(option) or option for option in options(annotation)]
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value).expanduser()
    if isinstance(value, list) and tuple in kinds and list not in kinds:
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    return value


def _accepts_one(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in typing.get_args(option))
    kind = typing.get_origin(option) or option
    if not isinstance(kind, type) or kind in UNCHECKED:
        return True
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, list):
        return _accepts_list(value, option, kind)
    if isinstance(value, dict):
        return issubclass(kind, Mapping) or (kind.__module__ == "collections.abc" and issubclass(dict, kind))
    if isinstance(value, str) and kind.__module__ == "collections.abc":
        return False
    wider = {float: (int, float), Path: (str, Path)}.get(kind, kind)
    try:
        return isinstance(value, wider)
    except TypeError:
        return True


def _accepts_list(value: list[Any], option: Any, kind: type) -> bool:
    if issubclass(kind, str | bytes | Mapping):
        return False
    arguments = typing.get_args(option)
    if kind is tuple and arguments and Ellipsis not in arguments and len(arguments) != len(value):
        return False
    return issubclass(kind, tuple | set | frozenset | Sequence) or issubclass(list, kind)
