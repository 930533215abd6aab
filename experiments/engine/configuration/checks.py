"""Checks of an experiment against schema, signatures and annotations, before anything heavy is built."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import reprlib
import typing
from collections.abc import Callable
from typing import Any

from experiments.engine.configuration.annotations import (
    accepts,
    dataclass_of,
    describe,
    is_class_to_build,
    item_annotation,
    options,
)
from experiments.engine.configuration.errors import ConfigError, did_you_mean, join

MISSING = "???"
SPEC_KEYS = ("class_path", "init_args")
# in the metadata of a field of a schema: a function that tells whether a value is in range, and the range in words
IS_VALID, VALID = "is_valid", "valid"


def is_spec(node: Any) -> bool:
    """Tell whether a configuration node describes an object to build."""
    return isinstance(node, dict) and "class_path" in node


def resolve_class_path(class_path: Any, path: str) -> Callable[..., Any]:
    """Import what a `class_path` names: a class, a function, or a classmethod `module.Class.method`.

    Args:
        class_path: Dotted name.
        path: YAML path of the node that holds it.

    Raises:
        ConfigError: Not a dotted name, or there is no such module or attribute.
    """
    path = join(path, "class_path")
    if not isinstance(class_path, str) or not all(part.isidentifier() for part in class_path.split(".")):
        raise ConfigError(path, f"expected a dotted name like package.module.Class, got {class_path!r}")
    parts = class_path.split(".")
    module: Any = None
    num_found = 0
    while num_found < len(parts) - 1:
        name = ".".join(parts[: num_found + 1])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise
            break
        num_found += 1
    if num_found == 0:
        raise ConfigError(path, f"there is no module {parts[0]}, so no {class_path}; check the spelling")
    found = module
    for depth in range(num_found, len(parts)):
        if not hasattr(found, parts[depth]):
            public = [name for name in dir(found) if not name.startswith("_")]
            hint = did_you_mean(parts[depth], public, list_all=False)
            raise ConfigError(path, f"{'.'.join(parts[:depth])} has no {parts[depth]}; {hint}")
        found = getattr(found, parts[depth])
    if not callable(found):
        raise ConfigError(path, f"{class_path} is not a class or function; name one")
    return found


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable by name, their annotations evaluated where that is possible."""
    try:
        return dict(inspect.signature(target, eval_str=True).parameters)
    except ValueError:  # some builtins have no signature and check their arguments themselves
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}
    except (NameError, TypeError, AttributeError):
        return dict(inspect.signature(target).parameters)


def check_spec(node: dict[str, Any], path: str) -> Callable[..., Any]:
    """Check an object description and everything nested in it, without building.

    Args:
        node: `{class_path, init_args}`.
        path: YAML path of the node.

    Returns:
        The imported class or function.

    Raises:
        ConfigError: Unknown class, unknown or missing argument, or a value of the wrong type.
    """
    for key in node:
        if key not in SPEC_KEYS:
            hint = did_you_mean(key, SPEC_KEYS, list_all=False)
            raise ConfigError(join(path, key), f"beside class_path there can only be init_args; {hint}")
    target = resolve_class_path(node["class_path"], path)
    arguments = node.get("init_args")
    if arguments is not None and not isinstance(arguments, dict):
        raise ConfigError(join(path, "init_args"), f"expected a mapping of arguments, got {arguments!r}")
    check_arguments(target, arguments or {}, join(path, "init_args"))
    return target


def check_arguments(target: Callable[..., Any], arguments: dict[str, Any], path: str) -> None:
    """Check arguments against the signature of a callable.

    Raises:
        ConfigError: An argument is unknown, missing or of the wrong type.
    """
    name = getattr(target, "__qualname__", str(target))
    parameters = parameters_of(target)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for key, value in arguments.items():
        if key not in named and not takes_any:
            raise ConfigError(join(path, key), f"{name} has no argument {key}; {did_you_mean(key, named)}")
        check_value(value, named[key].annotation if key in named else Any, join(path, key))
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(join(path, key), f"{name} needs this argument; give it a value")


def check_dataclass(schema: type, content: dict[str, Any], path: str) -> None:
    """Check keys, plain types and ranges of a mapping against a dataclass, whose fields may all be left out or null.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key, value in content.items():
        if key not in fields:
            raise ConfigError(join(path, key), f"unknown key; {did_you_mean(key, fields)}")
        if value is None or (isinstance(value, str) and "${" in value):
            continue
        check_value(value, hints[key], join(path, key), are_objects_checked=False)
        metadata = fields[key].metadata
        if value != MISSING and IS_VALID in metadata and not metadata[IS_VALID](value):
            raise ConfigError(join(path, key), f"expected {metadata[VALID]}, got {value!r}")


def check_finite(node: Any, path: str) -> None:
    """Refuse `.nan` and `.inf` anywhere in a configuration.

    Raises:
        ConfigError: A number that is not finite.
    """
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            check_finite(item, join(path, key))
    elif isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(path, f"{node} is not a finite number; give one, or write null for no limit")


def check_value(value: Any, annotation: Any, path: str, are_objects_checked: bool = True) -> None:
    """Check a value, and the objects described within it, against an annotation.

    Args:
        value: What YAML gave.
        annotation: An evaluated annotation.
        path: YAML path of the value.
        are_objects_checked: Whether to import and check objects described by `class_path`, and to refuse `???`.

    Raises:
        ConfigError: The value does not fit.
    """
    if are_objects_checked and is_spec(value):
        _check_class(check_spec(value, path), annotation, value["class_path"], join(path, "class_path"))
        return
    if value == MISSING:
        if are_objects_checked:
            raise ConfigError(path, f"a value is needed here; give it, e.g. on the command line with {path}=VALUE")
        return
    mapped = dataclass_of(annotation) if isinstance(value, dict) else None
    if mapped is not None:
        check_arguments(mapped, value, path)
        return
    if not accepts(value, annotation):
        kinds = options(annotation)
        hint = "; describe the object by class_path and init_args" if any(map(is_class_to_build, kinds)) else ""
        hint = "; give a mapping of its arguments" if dataclass_of(annotation) is not None else hint
        got = "null" if value is None else reprlib.repr(value)
        raise ConfigError(path, f"expected {describe(annotation)}, got {got}{hint}")
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_value(item, item_annotation(annotation, value, key), join(path, key), are_objects_checked)


def _check_class(target: Callable[..., Any], annotation: Any, class_path: str, path: str) -> None:
    """Refuse a class that is none of those that the annotation asks for; functions are accepted."""
    kinds = [option for option in options(annotation) if option is not type(None)]
    if isinstance(target, type) and kinds and all(map(is_class_to_build, kinds)):
        if not issubclass(target, tuple(kinds)):
            raise ConfigError(
                path, f"expected a {describe(annotation)}, but {class_path} is not one; name another class"
            )
