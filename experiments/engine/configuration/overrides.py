"""What one writes on the command line to change an experiment: `key=value`, where a key may have a short name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.engine.configuration.errors import ConfigError
from experiments.engine.configuration.schema import Alias, check_keys


def aliases_of(content: dict[str, Any]) -> dict[str, Alias]:
    """Return the short names that an experiment gives to keys.

    Raises:
        ConfigError: They are written down in another form.
    """
    check_keys({"aliases": content.get("aliases")}, "")
    return {name: Alias(**alias) for name, alias in (content.get("aliases") or {}).items()}


def parse_override(text: str, aliases: Mapping[str, Alias] | None = None) -> dict[str, Any]:
    """Turn `a.b=value` into nested keys; the value is YAML.

    Args:
        text: What was written.
        aliases: Short names of keys.

    Raises:
        ConfigError: There is no `=`, or the value is not YAML.
    """
    key, equals, value_text = text.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError("", f"cannot read {text!r}; write an override as key=value, e.g. trainer.max_steps=100")
    alias = (aliases or {}).get(key, Alias(key))
    value = value_text if alias.is_text else _value_of(value_text, key)
    for part in reversed(alias.key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def _value_of(text: str, key: str) -> Any:
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(key, f"the value {text!r} is not valid YAML: {error}") from error
    return cast(dict[str, Any], parsed)["value"]
