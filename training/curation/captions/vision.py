"""A caption of the whole clip by a vision-language model behind any endpoint that speaks OpenAI's chat completions.

`--tool vision.url=http://HOST/v1 --tool vision.model=NAME`: what vLLM and SGLang serve (Qwen-VL, InternVL).
Frames at even distances go out as JPEGs in one message, several clips at once, since such servers batch what waits
together. They leave this machine: name an endpoint that may see the footage.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from PIL import Image

from model.errors import InvalidRequest
from training.curation.captions.chat import OPTIONS, ChatEndpoint
from training.curation.frames import SAMPLED_FPS, ClipFrames
from training.curation.protocols import known_options
from training.curation.records import CaptionRecord, Resources, ToolOptions, caption_record, missing_caption

PROMPT: Final = (
    "These are frames of one short video, in order. Describe in one or two plain sentences what is to be seen and how "
    "it and the camera move. Say nothing that the frames do not show."
)
NO_ENDPOINT: Final = "no vision model was given (--tool vision.url=URL --tool vision.model=NAME)"
_JPEG_QUALITY: Final = 90
_NUMBERS: Final = {"frames": (8, 1, 64), "side": (512, 64, 2048), "max_tokens": (120, 1, 4096), "together": (8, 1, 64)}
"""Default, least and most of each: frames a clip, pixels of a frame's longer side, the caption's tokens, clips that the
endpoint is asked about at once."""


class VisionCaptioner:
    """A caption from frames at even distances over the clip.

    Raises:
        InvalidRequest: an endpoint without a model, a number out of range, or a key that is not set.
    """

    name = "vision"

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, (*OPTIONS, "prompt", *_NUMBERS))
        numbers = {name: _whole_number(options, name) for name in _NUMBERS}
        self._frames, self._side, self._tokens = numbers["frames"], numbers["side"], numbers["max_tokens"]
        self._together = numbers["together"]
        self._prompt = options.get("prompt", PROMPT)
        self._endpoint = ChatEndpoint.from_options(self.name, options) if "url" in options else None
        self._tool = "vision-language model"
        if self._endpoint is not None:
            self._tool = f"{self._endpoint.tool}, {self._frames} frames of at most {self._side}, {self._prompt!r}"

    @property
    def resources(self) -> Resources:
        """Little: the model runs elsewhere. Twice as many clips as are asked about at once, so that it never waits."""
        return Resources(batch=2 * self._together)

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip, in order; what others said is not used.

        Raises:
            DataError: the endpoint refuses a clip, or a clip has no frames.
            ToolUnavailable: the endpoint cannot be reached.
        """
        del earlier
        if self._endpoint is None:
            return [missing_caption(clip.clip_id, self.name, NO_ENDPOINT, self._tool) for clip in clips]
        endpoint = self._endpoint
        with ThreadPoolExecutor(min(self._together, max(1, len(clips)))) as pool:
            texts = list(pool.map(lambda clip: endpoint.complete(self._messages(clip), self._tokens), clips))
        pairs = zip(clips, texts, strict=True)
        return [caption_record(clip.clip_id, self.name, text, self._tool) for clip, text in pairs]

    def _messages(self, clip: ClipFrames) -> list[Mapping[str, Any]]:
        frames = clip.at_fps(SAMPLED_FPS)
        count = min(self._frames, len(frames))
        sampled = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(one, self._side)}} for one in sampled]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self._prompt}]}]


def _data_url(frame: np.ndarray[Any, np.dtype[np.uint8]], side: int) -> str:
    picture = Image.fromarray(frame)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _whole_number(options: ToolOptions, name: str) -> int:
    default, least, most = _NUMBERS[name]
    text = options.get(name, str(default))
    if not (text.isdecimal() and text.isascii() and least <= int(text) <= most):
        raise InvalidRequest(f"vision.{name} must be a whole number from {least} to {most}, not {text!r}", param="tool")
    return int(text)
