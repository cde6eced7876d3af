"""The cost profile of a checkpoint on this machine: measured seconds of calls, chunks and encodings. Imports no torch.

Source of estimates, admission and batch sizes. Times are stored by size and batch; a size never measured is taken from
the nearest one in proportion to its numbers (attention grows faster; the estimate is corrected once the size has run).
Measurements in operation update the same table by an exponential moving average, so a profile follows the machine.

Legend: a batch slot is one clip in a denoiser call; a guided row takes two.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.catalog import PROFILE, ModelEntry
from model.params import Params
from model.shapes import LatentShape, even_chunks

_WEIGHT = 0.3
"""Of the newest measurement: follows a change of the batch within a few steps, without jumping at each."""


class SmoothedRate:
    """Seconds a unit, exponentially smoothed."""

    def __init__(self, seconds_per_unit: float | None = None) -> None:
        self._seconds_per_unit = seconds_per_unit

    def observe(self, seconds: float, units: float) -> None:
        """`units` (> 0) of work took `seconds`."""
        latest = seconds / units
        known = self._seconds_per_unit
        self._seconds_per_unit = latest if known is None else known + _WEIGHT * (latest - known)

    def seconds_for(self, units: float) -> float | None:
        """What `units` of work will take; None before the first measurement."""
        return None if self._seconds_per_unit is None else self._seconds_per_unit * units


WORTHWHILE = 0.9
"""A batch pays off when each doubling of its slots leaves at most this share of a slot's time.

A larger call lets those who come meanwhile wait longer, so a gain within the noise of the measurement is none."""
_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class Machine:
    """What a profile holds for: another device, backend, type or thread count is measured anew."""

    device: str
    backend: str
    dtype: str
    threads: int
    pinned: bool
    torch: str

    @property
    def key(self) -> str:
        """One line that names it."""
        bits = "pinned" if self.pinned else "free"
        return f"{self.device} {self.backend} {self.dtype} {self.threads} threads {bits} torch {self.torch}"


class Profile:
    """Seconds of a denoiser call by (latent numbers, batch size), of a chunk by its pixels, and of an encoding.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, dict[int, float]] = {}
        self._careful: dict[int, dict[int, float]] = {}
        """What of them was measured with nothing beside it; only such figures say what a larger batch gains."""
        self._decoded: dict[int, float] = {}
        self._encode_s: float | None = None

    def set_call(self, numel: int, batch_size: int, seconds: float) -> None:
        """A call measured with nothing beside it; replaces what was known."""
        with self._lock:
            self._calls.setdefault(numel, {})[batch_size] = seconds
            self._careful.setdefault(numel, {})[batch_size] = seconds

    def take(self, other: Profile) -> None:
        """Know what another profile knows."""
        with self._lock:
            self._calls = {numel: dict(sizes) for numel, sizes in other._calls.items()}
            self._careful = {numel: dict(sizes) for numel, sizes in other._careful.items()}
            self._decoded, self._encode_s = dict(other._decoded), other._encode_s

    def observe_call(self, numel: int, batch_size: int, seconds: float) -> None:
        """A denoiser call of `batch_size` clips of `numel` latent numbers each took `seconds`."""
        with self._lock:
            sizes = self._calls.setdefault(numel, {})
            sizes[batch_size] = _blend(sizes.get(batch_size), seconds)

    def observe_decode(self, pixels: int, seconds: float) -> None:
        """Decoding a chunk of `pixels` pixels took `seconds`."""
        with self._lock:
            self._decoded[pixels] = _blend(self._decoded.get(pixels), seconds)

    def observe_encode(self, seconds: float) -> None:
        """Encoding a request's pictures took `seconds`."""
        with self._lock:
            self._encode_s = _blend(self._encode_s, seconds)

    def call_s(self, numel: int, batch_size: int) -> float | None:
        """Seconds of a denoiser call; None before any was measured."""
        with self._lock:
            if not self._calls:
                return None
            near = min(self._calls, key=lambda known: abs(known - numel))
            return _at(self._calls[near], batch_size) * numel / near

    def decode_s(self, pixels: int) -> float | None:
        """Seconds to decode a chunk of `pixels` pixels; None before any was."""
        with self._lock:
            if not self._decoded:
                return None
            near = min(self._decoded, key=lambda known: abs(known - pixels))
            return self._decoded[near] * pixels / near

    def worth(self, numel: int, most: int) -> int:
        """Size of the largest batch that pays off, up to `most`; `most` while no larger one was measured not to.

        Not by measurements in operation, where decoding slows down the very batches that are in use.
        """
        known = self._undisturbed(numel)
        best, largest = math.inf, 0
        for batch_size in sorted(size for size in known if size <= most):
            each = known[batch_size] / batch_size
            if not largest or each <= best * WORTHWHILE ** math.log2(batch_size / largest):
                best, largest = each, batch_size
        return largest if largest < max(known, default=0) else most

    def marginal(self, numel: int) -> float:
        """What a second guided row adds to a call, as a part of the first one's time: 1 where nothing is gained."""
        known = self._undisturbed(numel)
        return min(1.0, max(0.05, _at(known, 4) / _at(known, 2) - 1)) if known else 1.0

    def _undisturbed(self, numel: int) -> dict[int, float]:
        """Calls of one size by batch size, those measured with nothing beside them where there are any."""
        with self._lock:
            sizes = self._careful or self._calls
            return dict(sizes.get(numel) or next(iter(sizes.values()), {}))

    def generation_s(self, params: Params, latent: LatentShape, batch_size: int, evaluations: int) -> float | None:
        """Seconds of a whole request alone: encoding, `evaluations` calls of `batch_size` clips, decoding."""
        call = self.call_s(latent.numel, batch_size)
        chunks = even_chunks(params.num_frames, params.decode_chunk_size)
        decode = [self.decode_s(chunk * params.height * params.width) for chunk in chunks]
        if call is None or None in decode:
            return None
        return (self._encode_s or 0.0) + evaluations * call + sum(one for one in decode if one is not None)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        with self._lock:
            calls = {str(numel): {str(n): s for n, s in sizes.items()} for numel, sizes in self._calls.items()}
            decoded = {str(pixels): seconds for pixels, seconds in self._decoded.items()}
            return {"calls": calls, "decoded": decoded, "encode_s": self._encode_s}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Profile:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the values are none of ours.
        """
        profile = cls()
        calls, decoded, encode = values["calls"], values["decoded"], values["encode_s"]
        for numel, sizes in calls.items():  # type: ignore[attr-defined]
            profile._calls[int(numel)] = {int(batch_size): float(seconds) for batch_size, seconds in sizes.items()}
            profile._careful[int(numel)] = dict(profile._calls[int(numel)])
        profile._decoded = {int(pixels): float(seconds) for pixels, seconds in decoded.items()}  # type: ignore[attr-defined]
        profile._encode_s = None if encode is None else float(encode)  # type: ignore[arg-type]
        return profile


def read_profile(folder: Path, machine: Machine) -> Profile | None:
    """The profile stored beside a checkpoint for this machine; None where there is none that can be read."""
    try:
        return Profile.from_dict(read_entry(folder, machine.key))  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_entry(folder: Path, key: str) -> object:
    """One entry of the profile.json beside a checkpoint; None where there is none that can be read."""
    try:
        entry: object = json.loads((folder / PROFILE).read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry


def write_profile(folder: Path, machine: Machine, profile: Profile) -> bool:
    """Keep it beside the checkpoint, with those of other machines; False where the folder cannot be written."""
    return write_entry(folder, machine.key, profile.as_dict())


def write_entry(folder: Path, key: str, entry: object) -> bool:
    """Set one entry of the profile.json beside a checkpoint; False where the folder cannot be written."""
    path = folder / PROFILE
    try:
        known = json.loads(path.read_text())
        if not isinstance(known, dict):
            known = {}
    except (OSError, ValueError):
        known = {}
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(known | {key: entry}, indent=1) + "\n")
        partial.replace(path)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class RequestRates:
    """Two numbers from which another process estimates requests: of one with a checkpoint's defaults.

    Args:
        fixed_s: seconds without its denoiser evaluations.
        step_s: seconds of each evaluation.
    """

    fixed_s: float
    step_s: float

    @classmethod
    def measured(cls, entry: ModelEntry, estimate: Callable[[str, Params], float | None]) -> RequestRates | None:
        """The rates by an engine's estimates; None while it has none."""
        samples = [
            entry.resolve({**entry.task.sample_request, "num_inference_steps": steps}, seed=0) for steps in (1, 2)
        ]
        one, two = (estimate(entry.name, params) for params in samples)
        if one is None or two is None:
            return None
        more = denoiser_evaluations(samples[1]) - denoiser_evaluations(samples[0])
        step = max(0.0, two - one) / more
        return cls(max(0.0, one - step), step)

    def seconds(self, entry: ModelEntry, params: Params) -> float:
        """Of a request alone; another size in proportion to its pixels."""
        size = params.num_frames * params.height * params.width / (entry.num_frames[0] * entry.height * entry.width)
        return size * (self.fixed_s + denoiser_evaluations(params) * self.step_s)


def denoiser_evaluations(params: Params) -> int:
    """Evaluations of the denoiser that a request takes, each one or two batch slots wide."""
    return 2 * params.num_inference_steps - 1 if params.solver == "heun" else params.num_inference_steps


def _blend(known: float | None, seconds: float) -> float:
    return seconds if known is None else known + _NEWEST * (seconds - known)


def _at(sizes: dict[int, float], batch_size: int) -> float:
    """Seconds at `batch_size`: measured, else on the line through the two nearest measured, else in proportion."""
    if batch_size in sizes:
        return sizes[batch_size]
    near = sorted(sizes, key=lambda known: abs(known - batch_size))[:2]
    if len(near) == 1 or near[0] == near[1]:
        return sizes[near[0]] * batch_size / near[0]
    low, high = sorted(near)
    slope = max(0.0, (sizes[high] - sizes[low]) / (high - low))
    return max(sizes[low] + slope * (batch_size - low), sizes[low] * min(1.0, batch_size / low))
