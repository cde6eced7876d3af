"""The torch backend: the UNet as it was loaded, on the CPU or a CUDA device, in the dtype of its weights."""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor


class TorchDenoiser:
    """A Denoiser (model.backends.protocol) around a diffusers UNet; runs in inference mode."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        self._unet = unet.eval()

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. The embeddings of timestep and vector start in float32 whatever the weights' dtype."""
        dtype = self._unet.dtype
        with torch.inference_mode():
            output: Tensor = self._unet(
                torch.cat([latents, concat], dim=2).to(dtype),
                timestep,
                encoder_hidden_states=context.to(dtype),
                added_time_ids=vector,
                return_dict=False,
            )[0]
        return output.float()
