"""Frame interpolation's examples: five film frames, of which the first and the last are given (paper, appendix D).

The ends are latents as the diffusion model sees them, with noise put on the LATENTS; between them stands the learned
mask embedding, and a binary mask says which is which (model.conditioning). The context is the embedding of both
ends. Dropout zeroes all of that and keeps the vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.conditioning import between_ends
from training.config import DenoiserConfig
from training.data.config import EndsData
from training.data.latents import LatentClip
from training.data.motion_bucket import MotionMap
from training.objectives.examples.drawing import draw_window, lognormal, uniform, usable_strides
from training.objectives.protocol import Batch


class EndsExamples:
    """Draws clips in proportion to how much moves in them.

    Args:
        mask: [C], the learned embedding; a parameter of the network that trains.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        data: EndsData,
        clips: list[LatentClip],
        mask: Tensor,
        scaling: float,
        motion: MotionMap,
    ) -> None:
        self.config, self.data, self.mask, self.scaling, self.motion = config, data, mask, scaling, motion
        self.clips = [c for c in clips if usable_strides(c, config.num_frames)]
        moving = [data.still_moving + float(next(iter(c.flow.values())).mean()) for c in self.clips]
        lengths = torch.tensor([float(len(c.latents)) for c in self.clips])
        self.weights = lengths.sqrt() * torch.tensor(moving)

    def example(self, draw: torch.Generator) -> Batch:
        """One clip."""
        data, config = self.data, self.config
        clip = self.clips[int(torch.multinomial(self.weights, 1, generator=draw))]
        window = draw_window(clip, config.num_frames, draw)
        clean = window.latents * self.scaling
        noise = lognormal(data.noise_aug_log_mean, data.noise_aug_log_std, draw)
        start, end = (clean[k] + noise * torch.randn(clean[k].shape, generator=draw) for k in (0, -1))
        concat = between_ends(start, end, self.mask, config.num_frames)
        context = torch.from_numpy(clip.embeds[[window.index[0], window.index[-1]]])
        if uniform(draw) < config.condition_dropout:
            concat, context = torch.zeros_like(concat), torch.zeros_like(context)
        vector = torch.tensor([[*window.vector(self.motion), noise]])
        return Batch(clean[None], concat[None], context[None], vector, (f"{clip.clip.item.id}/{window.index}",))
