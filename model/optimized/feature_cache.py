"""Feature reuse: between two whole evaluations of the network, only its outermost layers run (off by default).

The deep features of a denoiser change slowly from step to step. So a row keeps them from one evaluation, and the next
`every` - 1 run only the first convolution and the last `depth` layers at full size, with the kept features in place of
everything between (DeepCache: Ma et al. 2024, arXiv 2312.00858, section 3.2). It costs quality, which is not
measured yet (docs/speed.md).

What is kept, and how old it is, belongs to the row (model.sampling.row.Row.kept): rows of one call are at different
ages, and each place of a call is either whole or outer. A row that goes on from a stored state begins with a whole
evaluation, so its video is not quite that of an uninterrupted run.

Legend: B places, T frames, C latent channels, E of the kept features, K of the input; N context tokens, D their width,
V vector scalars; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CachedFeatures, CpuThreads
from model.errors import InvalidRequest

Place = tuple[tuple[Tensor, ...], Tensor | None]
"""The inputs of some places, and the features kept of them; None where all layers are to run."""


class FeatureReuse:
    """A ReusingDenoiser (model.denoiser) around a UNet.

    Args:
        every: evaluations for which deep features serve, the one that made them included; 1 reuses nothing.
        depth: layers of the outermost level that always run.

    Raises:
        InvalidRequest: `every` below 1, or a depth that the network does not have.
    """

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

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser: every layer runs."""
        return self._outputs([((latents, timestep, context, concat, vector), None)])[0][0]

    def reusing(
        self, inputs: tuple[Tensor, ...], kept: Sequence[CachedFeatures | None], places: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """See ReusingDenoiser. Rows at the same kind of evaluation share a call; on a CPU each place has its own."""
        parts = list(zip(*(part.split(list(places)) for part in inputs), strict=True))
        features = [self._usable(one, count) for one, count in zip(kept, places, strict=True)]
        answers = self._outputs(list(zip(parts, features, strict=True)))
        after = [
            CachedFeatures(deep, 0 if old is None or one is None else one.age + 1)
            for (_, deep), old, one in zip(answers, features, kept, strict=True)
        ]
        return torch.cat([output for output, _ in answers]), after

    def _usable(self, kept: CachedFeatures | None, places: int) -> Tensor | None:
        """The features, unless they are too old or there are too few (a row that is guided again)."""
        if kept is None or kept.age + 1 >= self._every or len(kept.features) < places:
            return None
        return kept.features[-places:]  # the conditional place is the last

    def _outputs(self, rows: list[Place]) -> list[tuple[Tensor, Tensor]]:
        """Output and features of each row."""
        if self._pool is not None:
            return self._side_by_side(rows)
        answers: dict[int, tuple[Tensor, Tensor]] = {}
        for whole in (True, False):
            group = [number for number, (_, old) in enumerate(rows) if (old is None) == whole]
            if group:
                sizes = [len(rows[number][0][0]) for number in group]
                inputs = tuple(map(torch.cat, zip(*(rows[number][0] for number in group), strict=True)))
                olds = [old for number in group if (old := rows[number][1]) is not None]
                output, deep = self._run((inputs, torch.cat(olds) if olds else None))
                answers |= dict(zip(group, zip(output.split(sizes), deep.split(sizes), strict=True), strict=True))
        return [answers[number] for number in range(len(rows))]

    def _side_by_side(self, rows: list[Place]) -> list[tuple[Tensor, Tensor]]:
        """On a CPU: each place alone on its share of the cores, so that its bits do not know its company."""
        assert self._pool is not None
        alone: list[Place] = []
        for inputs, old in rows:
            singles = zip(*(part.split(1) for part in inputs), strict=True)
            olds = [None] * len(inputs[0]) if old is None else list(old.split(1))
            alone += zip(singles, olds, strict=True)
        done = iter(list(self._pool.map(self._pinned, alone)))
        answers = []
        for inputs, _ in rows:
            mine = [next(done) for _ in range(len(inputs[0]))]
            answers.append((torch.cat([output for output, _ in mine]), torch.cat([deep for _, deep in mine])))
        return answers

    def _pinned(self, place: Place) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(self._cores.half)
        return self._run(place)

    def _run(self, place: Place) -> tuple[Tensor, Tensor]:
        (latents, timestep, context, concat, vector), old = place
        dtype = self._unet.dtype
        with torch.inference_mode():
            sample = torch.cat([latents, concat], dim=2).to(dtype)
            output, deep = run_unet(self._unet, sample, timestep, context.to(dtype), vector, old, self._depth)
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
    told = _LayerInputs(unet, sample, timestep, context, vector)
    x = unet.conv_in(sample.flatten(0, 1))
    skips = [x]
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    outer = len(last.resnets) - depth
    # The last layer takes the first convolution's output, the one before it the first layer's, and so on.
    wanted = len(first.resnets) if deep is None else depth - 1
    for number in range(wanted):
        x = told.layer(first, number, x)
        skips.append(x)
    if deep is None:
        x = _inner(unet, x, skips, told)
        for number in range(outer):
            x = told.layer(last, number, torch.cat([x, skips[-1 - number]], dim=1))
        deep = x.unflatten(0, (rows, frames))
    else:
        x = deep.flatten(0, 1)
    for number in range(outer, len(last.resnets)):
        x = told.layer(last, number, torch.cat([x, skips[len(last.resnets) - 1 - number]], dim=1))
    x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return x.unflatten(0, (rows, frames)), deep


def _inner(unet: UNetSpatioTemporalConditionModel, x: Tensor, outer_skips: list[Tensor], told: _LayerInputs) -> Tensor:
    """Everything below the outermost level: its output, back at full size."""
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    skips: list[Tensor] = []
    for sampler in down[0].downsamplers or ():
        x = sampler(x)
        skips.append(x)
    for block in down[1:]:
        x, more = told.block(block, x)
        skips += more
    x = told.block(unet.mid_block, x)
    for number, block in enumerate(up[:-1]):
        count = len(block.resnets)
        mine, skips = tuple(skips[-count:]), skips[:-count]
        size = (skips[-1] if skips else outer_skips[-1]).shape[2:] if number < len(up) - 1 else None
        x = told.block(block, x, res_hidden_states_tuple=mine, upsample_size=size)
    return x


class _LayerInputs:
    """What every layer is told besides its input: the embeddings of time and vector, the context, the clip's length."""

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
