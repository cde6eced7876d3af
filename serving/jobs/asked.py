"""What a stored job asks for, read back from its row: the settings of its task, and its second stage if it has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from model.chain import Interpolation
from model.params import PARAMS, OutputFormat, Params

_BESIDE: Final = frozenset({"output_format", "interpolate"})
"""What lies among a job's params and is no setting of its task."""


def told(params: Params, output_format: OutputFormat, chain: Interpolation | None) -> dict[str, Any]:
    """A job's `params` as they are stored, and shown to callers."""
    second = {} if chain is None else {"interpolate": chain.as_dict()}
    return {**asdict(params), "output_format": output_format, **second}


def asked(task: str, stored: Mapping[str, Any]) -> tuple[Params, Interpolation | None]:
    """What `told` was told.

    Raises:
        InvalidRequest, KeyError, TypeError: it was stored by another version.
    """
    params = PARAMS[task](**{name: value for name, value in stored.items() if name not in _BESIDE})
    second = stored.get("interpolate")
    return params, None if second is None else Interpolation.from_dict(second, params.seed)


def total_steps(params: Params, chain: Interpolation | None) -> int:
    """Solver steps of a job, both stages."""
    second = 0 if chain is None else (params.num_frames - 1) * chain.params.num_inference_steps
    return params.num_inference_steps + second
