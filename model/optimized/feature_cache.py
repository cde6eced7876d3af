"""DeepCache (Ma et al. 2024, arXiv 2312.00858): deep features are cached between full evaluations (off by default).

The deep features of a denoiser change slowly from step to step. So a row carries them from one evaluation, and the next
`every` - 1 run only the first convolution and the last `depth` layers at full size, with the cached features in place
of everything between (section 3.2). It costs quality: docs/speed.md has the figures.

The features and their age belong to the row (model.sampling.row.Row.cached_features): rows of one call are at different
ages, and each batch slot of a call is either a full or a cached evaluation. A row that goes on from a stored state
begins with a full evaluation, so its video is not quite that of an uninterrupted run.

Legend: B batch slots, T frames, C latent channels, E of the cached features, K of the input; N context tokens, D their
width, V vector scalars; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CachedFeatures, CpuThreads, DenoiserInputs
from model.errors import InvalidRequest

CallPart = tuple[DenoiserInputs, Tensor | None]
"""Some batch slots, and their cached features; None where all layers are to run."""


class FeatureCacheDenoiser:
    """A CachingDenoiser (model.denoiser) around a UNet.

    Args:
        every: evaluations for which deep features serve, the one that made them included; 1 reuses nothing.
        depth: layers of the outermost level that always run.

    Raises:
        InvalidRequest: `every` below 1, or a depth that the network does not have.
    """

    caches_features = True

    def __init__(self, unet: UNetSpatioTemporalConditionModel, cores: CpuThreads, every: int, depth: int = 1) -> None:
        outermost = len(unet.up_blocks[-1].resnets)
        if every < 1 or not 1 <= depth <= outermost:
            raise InvalidRequest(
                f"reuse {every}:{depth} must be at least 1, and its depth from 1 to {outermost}", param="reuse"
            )
        self._unet = unet.eval()
        self._every = every
        self._depth = depth
        self._cores = cores
        on_cpu = unet.device.type == "cpu"
        self._pool = ThreadPoolExecutor(cores.count // cores.half, "stillmotion-unet") if on_cpu else None

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser: every layer runs."""
        return self._outputs([(inputs, None)])[0][0]

    def run_with_cache(
        self, inputs: DenoiserInputs, cache: Sequence[CachedFeatures | None], slots: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """See CachingDenoiser. Rows at the same kind of evaluation share a call; on a CPU each slot has its own."""
        usable = [self._usable(cached, count) for cached, count in zip(cache, slots, strict=True)]
        outputs = self._outputs(list(zip(inputs.split(slots), usable, strict=True)))
        after = [
            CachedFeatures(deep, 0 if features is None or cached is None else cached.age + 1)
            for (_, deep), features, cached in zip(outputs, usable, cache, strict=True)
        ]
        return torch.cat([output for output, _ in outputs]), after

    def _usable(self, cached: CachedFeatures | None, slots: int) -> Tensor | None:
        """The features, unless they are too old or there are too few (a row that is guided again)."""
        if cached is None or cached.age + 1 >= self._every or len(cached.features) < slots:
            return None
        return cached.features[-slots:]  # the conditional slot is the last

    def _outputs(self, rows: list[CallPart]) -> list[tuple[Tensor, Tensor]]:
        """Output and features of each row."""
        if self._pool is not None:
            return self._one_slot_each(rows)
        outputs: dict[int, tuple[Tensor, Tensor]] = {}
        for full in (True, False):
            group = [number for number, (_, features) in enumerate(rows) if (features is None) == full]
            if group:
                sizes = [rows[number][0].batch_size for number in group]
                inputs = DenoiserInputs.cat(rows[number][0] for number in group)
                cached = [features for number in group if (features := rows[number][1]) is not None]
                output, deep = self._run((inputs, torch.cat(cached) if cached else None))
                outputs |= dict(zip(group, zip(output.split(sizes), deep.split(sizes), strict=True), strict=True))
        return [outputs[number] for number in range(len(rows))]

    def _one_slot_each(self, rows: list[CallPart]) -> list[tuple[Tensor, Tensor]]:
        """On a CPU: each slot alone on its share of the cores, so that its bits do not depend on the batch."""
        assert self._pool is not None
        singles: list[CallPart] = []
        for inputs, features in rows:
            each = [None] * inputs.batch_size if features is None else list(features.split(1))
            singles += zip(inputs.split(1), each, strict=True)
        results = iter(list(self._pool.map(self._run_slot, singles)))
        outputs = []
        for inputs, _ in rows:
            of_row = [next(results) for _ in range(inputs.batch_size)]
            outputs.append((torch.cat([output for output, _ in of_row]), torch.cat([deep for _, deep in of_row])))
        return outputs

    def _run_slot(self, part: CallPart) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(self._cores.half)
        return self._run(part)

    def _run(self, part: CallPart) -> tuple[Tensor, Tensor]:
        inputs, features = part
        dtype = self._unet.dtype
        with torch.inference_mode():
            sample = torch.cat([inputs.latents, inputs.concat], dim=2).to(dtype)
            output, deep = run_unet(
                self._unet, sample, inputs.timestep, inputs.context.to(dtype), inputs.vector, features, self._depth
            )
        return output.float(), deep


def run_unet(
    unet: UNetSpatioTemporalConditionModel,
    sample: Float[Tensor, "B T K h w"],
    timestep: Float[Tensor, " B"],
    context: Float[Tensor, "B N D"],
    vector: Float[Tensor, "B V"],
    deep: Float[Tensor, "B T E h w"] | None,
    depth: int,
) -> tuple[Float[Tensor, "B T C h w"], Float[Tensor, "B T E h w"]]:
    """The network's output, and what lay before its last `depth` layers; given that, only they run.

    With `deep` None this is diffusers' own forward function, layer for layer.
    """
    rows, frames = sample.shape[:2]
    shared = _LayerInputs(unet, sample, timestep, context, vector)
    x = unet.conv_in(sample.flatten(0, 1))
    skips = [x]
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    outer = len(last.resnets) - depth
    # The last layer takes the first convolution's output, the one before it the first layer's, and so on.
    first_layers = len(first.resnets) if deep is None else depth - 1
    for number in range(first_layers):
        x = shared.layer(first, number, x)
        skips.append(x)
    if deep is None:
        x = _inner(unet, x, skips, shared)
        for number in range(outer):
            x = shared.layer(last, number, torch.cat([x, skips[-1 - number]], dim=1))
        deep = x.unflatten(0, (rows, frames))
    else:
        x = deep.flatten(0, 1)
    for number in range(outer, len(last.resnets)):
        x = shared.layer(last, number, torch.cat([x, skips[len(last.resnets) - 1 - number]], dim=1))
    x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return x.unflatten(0, (rows, frames)), deep


def _inner(
    unet: UNetSpatioTemporalConditionModel, x: Tensor, outer_skips: list[Tensor], shared: _LayerInputs
) -> Tensor:
    """Everything below the outermost level: its output, back at full size."""
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    skips: list[Tensor] = []
    for sampler in down[0].downsamplers or ():
        x = sampler(x)
        skips.append(x)
    for block in down[1:]:
        x, more = shared.block(block, x)
        skips += more
    x = shared.block(unet.mid_block, x)
    for number, block in enumerate(up[:-1]):
        count = len(block.resnets)
        block_skips, skips = tuple(skips[-count:]), skips[:-count]
        size = (skips[-1] if skips else outer_skips[-1]).shape[2:] if number < len(up) - 1 else None
        x = shared.block(block, x, res_hidden_states_tuple=block_skips, upsample_size=size)
    return x


class _LayerInputs:
    """Every layer's inputs besides its hidden states: embeddings of time and vector, context, image_only_indicator."""

    def __init__(self, unet: Any, sample: Tensor, timestep: Tensor, context: Tensor, vector: Tensor) -> None:
        rows, frames = sample.shape[:2]
        embedded = unet.time_embedding(unet.time_proj(timestep).to(sample.dtype))
        scalars = unet.add_time_proj(vector.flatten()).reshape(rows, -1).to(embedded.dtype)
        embedded = embedded + unet.add_embedding(scalars)
        self.temb: Tensor = embedded.repeat_interleave(frames, dim=0, output_size=rows * frames)
        self.context = context.repeat_interleave(frames, dim=0, output_size=rows * frames)
        self.video = torch.zeros(rows, frames, dtype=sample.dtype, device=sample.device)

    def layer(self, block: Any, number: int, x: Tensor) -> Tensor:
        """One residual block of a level, and its transformer where it has one."""
        x = block.resnets[number](x, self.temb, image_only_indicator=self.video)
        if getattr(block, "has_cross_attention", False):
            transformer: Callable[..., tuple[Tensor]] = block.attentions[number]
            x = transformer(x, self.context, image_only_indicator=self.video, return_dict=False)[0]
        return x

    def block(self, block: Any, x: Tensor, **more: Any) -> Any:
        """A whole level."""
        if getattr(block, "has_cross_attention", False):
            more["encoder_hidden_states"] = self.context
        return cast(Any, block(hidden_states=x, temb=self.temb, image_only_indicator=self.video, **more))
