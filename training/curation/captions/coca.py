"""CoCa on the middle frame (paper, appendix C), through open_clip.

Not shipped: `--tool coca.weights=FILE_OR_TAG` names a checkpoint file or one of open_clip's tags, `coca.model` the
architecture. open_clip needs torchvision; both come with the [coca] extra, torchvision built for the torch at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import DataError, MissingExtra
from training.curation.frames import ClipFrames
from training.curation.protocols import known_options, tool_version
from training.curation.records import CaptionRecord, Resources, ToolOptions, caption_record, missing_caption

if TYPE_CHECKING:
    import torch

MODEL = "coca_ViT-L-14"
NO_WEIGHTS = "no CoCa weights were given (--tool coca.weights=FILE_OR_TAG)"


class CocaCaptioner:
    """One sentence about the clip's middle frame.

    Raises:
        MissingExtra: open_clip, or the torchvision it needs, does not import.
        DataError: no such weights.
    """

    name = "coca"
    resources = Resources(batch=16)

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ("weights", "model"))
        self._model: Any = None
        self._tool, self._weights = "CoCa", ""
        if "weights" in options:
            self._load(options.get("model", MODEL), options["weights"])

    def _load(self, architecture: str, weights: str) -> None:
        try:
            import open_clip
        except (ImportError, RuntimeError) as error:  # a torchvision built for another torch fails with the latter
            raise MissingExtra(f"CoCa (open_clip does not import: {error})", "coca") from error
        from training.data.latents import weights_digest

        try:
            self._model = open_clip.create_model(architecture, pretrained=weights).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"open_clip loads no {architecture} from {weights!r}: {error}") from error
        self._decode = open_clip.decode
        self._weights = weights_digest(self._model)
        self._tool = f"{tool_version('open_clip', ('open_clip_torch',))} {architecture}"

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip; what others said is not used."""
        del earlier
        if self._model is None:
            return [missing_caption(clip.clip_id, self.name, NO_WEIGHTS, self._tool) for clip in clips]
        import torch

        from training.curation.inputs import square_pixels

        side = self._model.visual.image_size
        side = side[0] if isinstance(side, tuple) else side
        middles = [square_pixels(clip.first_middle_last()[1:2], side, crop=True) for clip in clips]
        with torch.inference_mode():
            tokens = self._model.generate(torch.cat(middles))
        return [
            caption_record(clip.clip_id, self.name, self._words(row), self._tool, self._weights)
            for clip, row in zip(clips, tokens, strict=True)
        ]

    def _words(self, tokens: torch.Tensor) -> str:
        text: str = self._decode(np.asarray(tokens))
        return text.split("<end_of_text>")[0].replace("<start_of_text>", "").strip(" .")
