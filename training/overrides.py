"""Settings of a config by name: `--set optim.lr=1e-4`, and a saved config completed by those that came after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_type_hints

from model.errors import InvalidRequest
from training.config import Config


def completed(config: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the settings that came later than it, at their defaults.

    Args:
        config: the config that it is to be compared with; the dataclasses are its.
    """
    out = dict(saved)
    for field in dataclasses.fields(config):
        own = getattr(config, field.name)
        if field.name not in saved and field.default is not dataclasses.MISSING:
            whole = dataclasses.is_dataclass(field.default) and not isinstance(field.default, type)
            out[field.name] = dataclasses.asdict(field.default) if whole else field.default
        elif dataclasses.is_dataclass(own) and isinstance(saved.get(field.name), dict):
            out[field.name] = completed(own, saved[field.name])
    return out


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """The config with `key=value` settings replaced; `optim.lr=1e-4` reaches into the nested part.

    Raises:
        InvalidRequest: no such key, or a value that is not of its type.
    """
    for setting in overrides:
        key, separator, text = setting.partition("=")
        if not separator:
            raise InvalidRequest(f"--set takes key=value, not {setting!r}", param="set")
        config = _replaced(config, key.strip().split("."), text.strip(), key)
    return config


def _pair(text: str) -> tuple[float, float]:
    low, high = text.split(",")
    return float(low), float(high)


_TRUTH = {"true": True, "false": False}
_PARSERS: dict[Any, Callable[[str], Any]] = {
    tuple[float, ...]: lambda text: tuple(float(one) for one in text.split(",") if one.strip()),
    int: int,
    float: float,
    str: str,
    bool: lambda text: _TRUTH[text.lower()],
    tuple[float, float]: _pair,
    tuple[int, ...]: lambda text: tuple(int(one) for one in text.split(",")),
    tuple[str, ...]: lambda text: tuple(one.strip() for one in text.split(",")),
}


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    names = {field.name for field in dataclasses.fields(part)}
    if path[0] not in names:
        raise InvalidRequest(f"no setting is called {key!r}; there are: {', '.join(sorted(names))}", param="set")
    current = getattr(part, path[0])
    if len(path) > 1:
        return dataclasses.replace(part, **{path[0]: _replaced(current, path[1:], text, key)})
    kind = get_type_hints(type(part))[path[0]]
    try:
        value = _PARSERS[kind](text)
    except (KeyError, ValueError) as error:
        raise InvalidRequest(f"{key} takes a {kind}, not {text!r}", param="set") from error
    return dataclasses.replace(part, **{path[0]: value})
