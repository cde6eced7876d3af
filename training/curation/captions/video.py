"""A caption of the whole clip by InstructBLIP for video, through transformers (the paper uses VideoBLIP).

Not shipped: `--tool video.weights=DIR_OR_HUB_ID` names a folder with the model, its tokenizer and a folder
`qformer_tokenizer` (a hub checkpoint of InstructBlipVideo has them). Frames and tokens are prepared here, as the
published processor does: that one needs torchvision, for a resize.

Legend: B clips, T = 4 frames, S the square's side, Q query tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import DataError
from training.curation.frames import SAMPLED_FPS, ClipFrames
from training.curation.protocols import known_options, tool_version
from training.curation.records import CaptionRecord, Resources, ToolOptions, caption_record, missing_caption

if TYPE_CHECKING:
    import torch

FRAMES = 4
"""What the network was trained with; its query tokens are laid out for it."""
PROMPT = "Describe the video in one sentence."
LONGEST = 60
NO_WEIGHTS = "no video captioner was given (--tool video.weights=DIR_OR_HUB_ID)"


class VideoCaptioner:
    """One sentence about four frames of the clip.

    Raises:
        DataError: no such weights.
    """

    name = "video"
    resources = Resources(batch=8)

    def __init__(self, options: ToolOptions) -> None:
        known_options(self.name, options, ("weights", "prompt"))
        self._prompt = options.get("prompt", PROMPT)
        self._model: Any = None
        self._tool, self._weights = "InstructBlipVideo", ""
        if "weights" in options:
            self._load(options["weights"])

    def _load(self, weights: str) -> None:
        from transformers import AutoTokenizer, InstructBlipVideoForConditionalGeneration

        from training.data.latents import weights_digest

        try:
            self._model = InstructBlipVideoForConditionalGeneration.from_pretrained(weights).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(weights)
            self._tokenize_prompt = AutoTokenizer.from_pretrained(weights, subfolder="qformer_tokenizer")
        except (OSError, ValueError) as error:
            raise DataError(f"no InstructBlipVideo can be loaded from {weights!r}: {error}") from error
        self._weights = weights_digest(self._model)
        self._tool = f"{tool_version('transformers', ('transformers',))} InstructBlipVideo, {Path(weights).name}"

    def caption(self, clips: Sequence[ClipFrames], earlier: Sequence[Sequence[CaptionRecord]]) -> list[CaptionRecord]:
        """One caption a clip; what others said is not used."""
        del earlier
        if self._model is None:
            return [missing_caption(clip.clip_id, self.name, NO_WEIGHTS, self._tool) for clip in clips]
        import torch

        texts = self._say(torch.stack([self._pixels(clip) for clip in clips]))
        pairs = zip(clips, texts, strict=True)
        return [caption_record(clip.clip_id, self.name, text, self._tool, self._weights) for clip, text in pairs]

    def _pixels(self, clip: ClipFrames) -> torch.Tensor:
        """[T, 3, S, S]: four frames at even distances."""
        from training.curation.inputs import square_pixels

        frames = clip.at_fps(SAMPLED_FPS)
        sampled = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
        return square_pixels(sampled, self._model.config.vision_config.image_size, crop=False)

    def _say(self, pixels: torch.Tensor) -> list[str]:
        import torch

        config, count = self._model.config, len(pixels)
        queries = torch.full((count, config.num_query_tokens * FRAMES), config.video_token_index)
        prompt = self._tokenizer([self._prompt] * count, return_tensors="pt").input_ids
        prompt_tokens = self._tokenize_prompt([self._prompt] * count, return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model.generate(
                pixel_values=pixels,
                qformer_input_ids=prompt_tokens.input_ids,
                qformer_attention_mask=prompt_tokens.attention_mask,
                input_ids=torch.cat([queries, prompt], dim=1),
                max_new_tokens=LONGEST,
                do_sample=False,
            )
        if not config.text_config.is_encoder_decoder and tokens.shape[1] > queries.shape[1] + prompt.shape[1]:
            tokens = tokens[:, queries.shape[1] + prompt.shape[1] :]
        return [str(text) for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]
