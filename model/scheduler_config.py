"""The scheduler's config of a checkpoint's folder: each setting is obeyed, has no effect, or is refused by name.

A folder's `scheduler/scheduler_config.json` is written for diffusers' EulerDiscreteScheduler. Here a request names the
solver and the schedule, over the sigmas that the config gives; what the config would change besides is not passed over:

obeyed      sigma_min, sigma_max; timestep_spacing, which with continuous timesteps decides only the scale of the first
            latents (sqrt(1 + sigma_max^2) for `leading`, sigma_max for `linspace` and `trailing`)
refused     another class; prediction_type but v_prediction; timestep_type but continuous; sigmas that are not Karras's;
            final_sigmas_type but zero; a setting that is not known here and is not off
no effect   the betas and what interpolates between them: Karras sigmas with both ends given read none of it
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.errors import CheckpointError

FILE: Final = "scheduler/scheduler_config.json"
_CLASS: Final = "EulerDiscreteScheduler"
_NO_EFFECT: Final = frozenset({
    "beta_end", "beta_schedule", "beta_start", "clip_sample", "interpolation_type", "num_train_timesteps",
    "rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps", "steps_offset", "trained_betas",
})  # fmt: skip
_REQUIRED: Final[dict[str, tuple[Any, Any]]] = {
    "prediction_type": ("v_prediction", "epsilon"),
    "timestep_type": ("continuous", "discrete"),
    "use_karras_sigmas": (True, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
    "final_sigmas_type": ("zero", "zero"),
}
"""Setting -> the value that is served, and what diffusers takes where it is absent."""
_SPACINGS: Final = ("leading", "linspace", "trailing")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What is obeyed of it.

    Args:
        sigma_min, sigma_max: the ends of the noise levels.
        unit_start: the first latents are noise times sigma_max, not times sqrt(1 + sigma_max^2).
    """

    sigma_min: float
    sigma_max: float
    unit_start: bool = False


def read_scheduler(folder: Path) -> SchedulerConfig:
    """A checkpoint folder's.

    Raises:
        CheckpointError: it is missing, or has a setting that is not served; the message names it.
    """
    file = folder / FILE
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is missing or not valid JSON: {error}", param="model") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no JSON object", param="model")
    return check_scheduler(config, str(file))


def check_scheduler(config: dict[str, Any], where: str) -> SchedulerConfig:
    """What is obeyed of a config. Raises CheckpointError as `read_scheduler`."""
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise _refused(where, "_class_name", kind, _CLASS)
    for name, (served, absent) in _REQUIRED.items():
        if config.get(name, absent) != served:
            raise _refused(where, name, config.get(name, absent), served)
    spacing = config.get("timestep_spacing", "linspace")
    if spacing not in _SPACINGS:
        raise _refused(where, "timestep_spacing", spacing, " or ".join(_SPACINGS))
    known = _NO_EFFECT | _REQUIRED.keys() | {"sigma_min", "sigma_max", "timestep_spacing"}
    for name in sorted(config.keys() - known):
        if not name.startswith("_") and config[name] not in (None, False):
            raise CheckpointError(
                f"{where} has {name} = {config[name]!r}, which is not known here, so that it cannot be obeyed; "
                "remove it if the checkpoint does not need it",
                param="model",
                code="scheduler_unsupported",
            )
    low, high = (_sigma(where, name, config.get(name)) for name in ("sigma_min", "sigma_max"))
    if low >= high:
        raise CheckpointError(f"{where}: sigma_min {low:g} is not below sigma_max {high:g}", param="model")
    return SchedulerConfig(low, high, spacing != "leading")


def _sigma(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _refused(where, name, value, "a positive number")
    return float(value)


def _refused(where: str, name: str, value: Any, served: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} has {name} = {value!r}; served is {served!r} only: its videos would not be the checkpoint's. Take a "
        "checkpoint trained so, or change the setting where it is a mistake",
        param="model",
        code="scheduler_unsupported",
    )
