"""A model configuration's parameters as the engine's settings. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from model.errors import InvalidRequest
from serving.engine.settings import EngineSettings

_log = logging.getLogger(__name__)
_OFF: Final = "off"


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _seconds(text: str) -> float | None:
    return None if text.lower() == _OFF else float(text)


def _interval(text: str) -> tuple[float, float]:
    low, high = text.split()
    return float(low), float(high)


PARAMETERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "denoiser": ("backend", str),
    "device": ("device", str),
    "dtype": ("dtype", str),
    "threads": ("threads", int),
    "mux_threads": ("mux_threads", int),
    "max_rows": ("max_rows", int),
    "max_batch": ("max_batch", int),
    "deterministic": ("deterministic", _flag),
    "warm_up": ("warm_up", _flag),
    "checkpoint_every_s": ("checkpoint_every_s", _seconds),
    "attention": ("attention", str),
    "reuse_every": ("reuse_every", int),
    "guidance_interval": ("guidance_interval", _interval),
    "vram_budget": ("vram_budget_gib", float),
}
"""Parameter -> the setting's name in EngineSettings, and how its text is read."""
_WRITTEN_BY_EXPORT: Final = frozenset({"backend", "checkpoint_version"})


def settings_from(parameters: Mapping[str, str], kind: str, device_id: int) -> EngineSettings:
    """The engine's settings.

    Args:
        parameters: of the configuration.
        kind: of the instance, `GPU` or `CPU`; it decides the device unless a parameter does.
        device_id: the GPU's number.

    Raises:
        InvalidRequest: a parameter's value is none.
    """
    given: dict[str, Any] = {"device": f"cuda:{device_id}" if kind == "GPU" else "cpu"}
    for name, text in parameters.items():
        if name not in PARAMETERS:
            if name not in _WRITTEN_BY_EXPORT and not name.startswith("label."):
                _log.warning("config.pbtxt has a parameter %s that stillmotion does not know", name)
            continue
        setting, read = PARAMETERS[name]
        try:
            given[setting] = read(text)
        except (KeyError, ValueError) as error:
            raise InvalidRequest(f"parameter {name} of config.pbtxt cannot be {text!r}", param=name) from error
    return EngineSettings(**given)
