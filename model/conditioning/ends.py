"""Frame interpolation's channels beside the noisy latents: both ends, a learned embedding between them, and a mask.

Paper, appendix D: {z_start, z_m, ..., z_m, z_end}, with z_m learned, and a binary mask. Here the ends are latents as
the diffusion model sees them (times the scaling factor), so that noise in latent space is measured against unit
variance; the mask is 1 where a frame is given.

Legend: T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.errors import InvalidRequest


def between_ends(
    start: Float[Tensor, "C h w"], end: Float[Tensor, "C h w"], mask: Float[Tensor, " C"], num_frames: int
) -> Float[Tensor, "T C+1 h w"]:
    """What is concatenated, frame by frame; differentiable in `mask`, which training learns.

    Args:
        mask: the learned embedding of a frame that is not given, the same at every place.

    Raises:
        InvalidRequest: fewer than two frames.
    """
    if num_frames < 2:
        raise InvalidRequest(f"two ends need at least 2 frames, not {num_frames}", param="num_frames")
    inner = mask.to(start)[None, :, None, None].expand(num_frames - 2, -1, *start.shape[1:])
    given = start.new_zeros(num_frames, 1, *start.shape[1:])
    given[0] = given[-1] = 1.0
    return torch.cat([torch.cat([start[None], inner, end[None]]), given], dim=1)
