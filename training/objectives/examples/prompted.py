"""Text-to-video's examples: clips of a virtual camera, film, and single pictures, each with a caption (section 4.1).

The caption names the motion first, where it is known, then what is measured of the first frame. Shares of captions have
only the one or the other. A curated clip that captioners described is told by one of them, drawn as in the paper's
appendix C, in place of what is measured. Dropout zeroes the tokens and keeps the
vector. A share of clips is told the middle motion bucket, so that there the prompt alone says how things move.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.conditioning import text_context
from model.encoders import TextEncoder
from training.config import DenoiserConfig
from training.curation.captions.choice import SHARES, choose_caption
from training.data.attribute_captions import attribute_caption
from training.data.config import PromptedData
from training.data.latents import LatentClip
from training.data.motion_bucket import MotionMap
from training.objectives.examples.drawing import ClipWindow, choice, draw_window, uniform, usable_strides
from training.objectives.protocol import Batch


class PromptedExamples:
    """Draws a camera clip, a film clip, or as many pictures as a clip has frames.

    Args:
        camera: clips of a virtual camera, and the name of each one's motion.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        data: PromptedData,
        film: list[LatentClip],
        camera: list[tuple[LatentClip, str]],
        text: TextEncoder,
        scaling: float,
        motion: MotionMap,
    ) -> None:
        self.config, self.data, self.text, self.scaling, self.motion = config, data, text, scaling, motion
        self.clips = [c for c in film if usable_strides(c, config.num_frames)]
        self.camera = camera
        self.weights = torch.tensor([float(len(c.latents)) for c in self.clips]).sqrt()
        self._contexts: dict[str, Tensor] = {}

    def example(self, draw: torch.Generator) -> Batch:
        """One row."""
        if uniform(draw) < self.data.image_share:
            return self._pictures(draw)
        clip, motion = self._choose(draw)
        window = draw_window(clip, self.config.num_frames, draw)
        fps, bucket = window.vector(self.motion)
        if uniform(draw) < self.data.bucket_untold:
            bucket = self.motion.reference_bucket
        context = self._context(self.caption(window, motion, draw), draw)
        clean = window.latents[None] * self.scaling
        name = f"{clip.clip.item.id}/{window.index}"
        return Batch(clean, clean[:, :, :0], context[None], torch.tensor([[fps, bucket]]), (name,))

    def caption(self, window: ClipWindow, motion: str | None, draw: torch.Generator) -> str:
        """What the clip is said to show."""
        share = uniform(draw)
        words = self._words(window.clip, window.index[0], draw)
        if motion is None or share < self.data.motion_untold:
            return words
        return motion if share < self.data.motion_untold + self.data.motion_alone else f"{motion}, {words}"

    def _pictures(self, draw: torch.Generator) -> Batch:
        """Independent pictures, as many as a clip has frames: sigma, caption and dropout of each its own."""
        rows: list[tuple[Tensor, Tensor]] = []
        names: list[str] = []
        for _ in range(self.config.num_frames):
            clip, _motion = self._choose(draw)
            frame = int(torch.randint(0, len(clip.latents), (), generator=draw))
            context = self._context(self._words(clip, frame, draw), draw)
            rows.append((torch.from_numpy(clip.latents[frame : frame + 1]).float() * self.scaling, context))
            names.append(f"{clip.clip.item.id}/{frame}")
        clean, contexts = (torch.stack(column) for column in zip(*rows, strict=True))
        vector = torch.tensor([[5.0, self.motion.reference_bucket]]).expand(len(rows), -1)
        return Batch(clean, clean[:, :, :0], contexts, vector, tuple(names), pictures=True)

    def _choose(self, draw: torch.Generator) -> tuple[LatentClip, str | None]:
        if not self.camera or (self.clips and uniform(draw) < self.data.film_share):
            return self.clips[int(torch.multinomial(self.weights, 1, generator=draw))], None
        return choice(self.camera, draw)

    @staticmethod
    def _words(clip: LatentClip, frame: int, draw: torch.Generator) -> str:
        captions = clip.clip.item.captions
        if SHARES.keys() & captions.keys() and (said := choose_caption(captions, uniform(draw))):
            return said
        kind = "photo" if clip.clip.item.file.startswith("photos/") else "shot"
        return attribute_caption(clip.clip.frames[frame], kind)

    def _context(self, caption: str, draw: torch.Generator) -> Tensor:
        if caption not in self._contexts:
            with torch.no_grad():
                self._contexts[caption] = text_context(self.text, caption)
        tokens = self._contexts[caption]
        return torch.zeros_like(tokens) if uniform(draw) < self.config.condition_dropout else tokens
