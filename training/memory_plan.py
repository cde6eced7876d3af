"""What a run needs before it starts, and what it then takes: inputs, sizes, and the memory of one process.

The plan builds the network on the meta device, where it takes no memory, and runs it there once: what autograd would
keep of that run is counted, tensor by tensor. So the figures are of the real network at its real size, on any machine.

    weights, and of what trains gradients, the optimizer's moments and the average, in float32; over the processes
    if sharded
    + the largest block once more, whole, if sharded
    + what autograd keeps of one call; with checkpointing the blocks' inputs, and the insides of the largest one

    + of a distillation, the teacher's weights in float32, whole in every process

Not counted: the frozen networks (latents are cached), the allocator's slack, and the kernels' own scratch space.

Arithmetic is counted on the meta device too (model.memory.compute): a gradient step costs three forward passes, four
with checkpointing; a distillation adds its teacher's solves. GPU hours are that over 40% of an H100's dense bfloat16
rate, which is an assumption, not a measurement.

`PeakMemory` measures what training really takes. On a GPU: the most that was allocated. On a CPU: how far the resident
memory grew at its peak, and what the network, its average and the optimizer held when counting began.

Legend: B rows a call, T frames, C latent channels, K concatenated channels, N context tokens; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import AlphaBlender
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from model.memory.compute import denoiser_flops
from model.memory.plan import GIB, AttentionReplaced
from model.optimized.rewrites import blend_weight, rewrite_exactly
from model.platform import trim_freed_memory
from model.presets import preset
from model.sampling.solvers import lcm_sigmas
from model.shapes import VAE_STRIDE, LatentShape
from model.tasks import task
from model.unet import build_unet, count_parameters
from training.config import ConsistencyConfig, Denoising, LoraConfig
from training.distilled_levels import level_weights
from training.lora import adapt
from training.optimizers import count_moments

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Counts from when it is made.

    Args:
        device: where the network trains.
        held: tensors that belong to the training and are there already.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor]) -> None:
        self._device = device
        self._held = self._began = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        self._held = sum(storages.values())
        trim_freed_memory()  # or what was freed before would serve the work unseen
        if _CLEAR.exists():
            _CLEAR.write_text("5")  # the kernel's peak starts anew from what is resident now
        self._began = _resident("VmRSS")

    @property
    def bytes(self) -> int | None:
        """The peak up to now; None where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        peak = _resident("VmHWM")
        return self._held + max(0, peak - self._began) if peak else None


def _resident(field: str) -> int:
    """A line of the kernel's account of this process, in bytes; 0 where there is none."""
    if not _STATUS.exists():
        return 0
    line = next((one for one in _STATUS.read_text().splitlines() if one.startswith(field + ":")), None)
    return int(line.split()[1]) * 1024 if line else 0


def describe(predicted: int | None, measured: int | None) -> str:
    """Both, for a person."""
    parts_text = [f"{name} {size / GIB:.2f} GiB" for name, size in _both(predicted, measured) if size is not None]
    return "memory of one process: " + (", ".join(parts_text) or "this system does not tell")


def log_values(predicted: int | None, measured: int | None) -> dict[str, float]:
    """Both, for the log."""
    return {f"{name}_gib": round(size / GIB, 4) for name, size in _both(predicted, measured) if size is not None}


def _both(predicted: int | None, measured: int | None) -> tuple[tuple[str, int | None], ...]:
    return ("predicted", predicted), ("measured", measured)


FLOAT32 = 4
GPU_RATE = 0.4 * 989e12
"""Floating-point operations a second that a plan takes a GPU to do: 40% of an H100 SXM's dense bfloat16 peak."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The needs of one process; memory in bytes.

    Args:
        parameters, trainable: numbers of the network, and how many of them change once every layer trains.
        inputs: shape of every tensor that one call is given.
        states: weights, gradients, moments and average.
        whole_block: the largest block gathered, if sharded.
        activations: what autograd keeps of one call.
        teacher: weights of a distillation's teacher.
    """

    parameters: int
    trainable: int
    inputs: dict[str, tuple[int, ...]]
    states: int
    whole_block: int
    activations: int
    teacher: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.states + self.whole_block + self.activations + self.teacher

    def lines(self) -> list[str]:
        """For a person to read."""
        parts = {"states": self.states, "whole block": self.whole_block, "activations": self.activations}
        parts |= {"teacher": self.teacher} if self.teacher else {}
        parts_text = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return [
            f"parameters {self.parameters:,}, of which {self.trainable:,} train",
            *(f"{name} {list(shape)}" for name, shape in self.inputs.items()),
            f"memory of one process: {self.bytes / GIB:.2f} GiB ({parts_text})",
        ]


def rows_a_call(config: Denoising, processes: int) -> int:
    """Rows of one call of the network in one process."""
    rows = -(-config.optim.batch // processes)
    return 1 if config.runtime.sharding != "none" else -(-rows // config.runtime.accumulate)


def inputs_of(config: Denoising, rows: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a call on `rows` clips is given, from the task's spec."""
    spec, size = task(config.task), preset(config.preset)
    channels = size.vae.latent_channels
    latent = (config.height // VAE_STRIDE, config.width // VAE_STRIDE)
    return {
        "noisy": (rows, config.num_frames, channels, *latent),
        "concat": (rows, config.num_frames, spec.concat_channels(channels), *latent),
        "sigma": (rows,),
        "context": (rows, spec.context_tokens, size.unet.context_dim),
        "vector": (rows, len(spec.vector)),
    }


def meta_network(config: Denoising) -> UNetSpatioTemporalConditionModel:
    """The recipe's network on the meta device, rewritten as it would train."""
    spec = task(config.task)
    unet = build_unet(preset(config.preset), spec, device="meta", num_frames=config.num_frames)
    rewrite_exactly(cast(nn.Module, unet), context_tokens=spec.context_tokens)
    for layer in unet.modules():
        if isinstance(layer, AlphaBlender):
            layer.__dict__["forward"] = _blend(layer)
    unet.train()
    if isinstance(config, LoraConfig):
        adapt(unet, config.rank, config.alpha, config.optim.seed)
    return unet


def _blend(blender: AlphaBlender) -> Callable[..., Tensor]:
    """A blender over clips; diffusers' own keeps its weight on the CPU, which meta tensors do not meet."""

    def forward(x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None) -> Tensor:
        del image_only_indicator
        weight = blend_weight(cast(nn.Module, blender), x_spatial)
        return weight * x_spatial + (1 - weight) * x_temporal

    return forward


def plan(config: Denoising, processes: int = 1) -> MemoryPlan:
    """What the run of a config needs on one of `processes` processes."""
    unet = meta_network(config)
    rows = rows_a_call(config, processes)
    inputs = inputs_of(config, rows)
    parameters = count_parameters(cast(nn.Module, unet))
    trainable = count_parameters(cast(nn.Module, unet), trainable=True)
    sharded = config.runtime.sharding != "none" and processes > 1
    blocks = [count_parameters(block) for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
    numbers = (
        parameters + 2 * trainable + count_moments(cast(nn.Module, unet), config.optim)
    )  # 2: gradients, the average
    return MemoryPlan(
        parameters=parameters,
        trainable=trainable,
        inputs=inputs,
        states=FLOAT32 * (-(-numbers // processes) if sharded else numbers),
        whole_block=FLOAT32 * max(blocks) * 2 if sharded else 0,
        activations=_kept(unet, config, inputs),
        teacher=FLOAT32 * parameters if isinstance(config, ConsistencyConfig) else 0,
    )


def describe_arithmetic(config: Denoising) -> str:
    """What a whole run computes, for a person to read."""
    flops = run_flops(config)
    return (
        f"arithmetic of the run: {flops / 1e15:,.3g} PFLOP, {flops / GPU_RATE / 3600:,.3g} GPU hours at "
        f"{GPU_RATE / 1e12:.0f} TFLOP/s"
    )


def run_flops(config: Denoising) -> int:
    """Floating-point operations of the whole run; windows count as a share of the clip, attention within included."""
    spec = task(config.task)
    unet = build_unet(preset(config.preset), spec, device="meta", num_frames=config.num_frames)
    _, frames, channels, height, width = inputs_of(config, 1)["noisy"]
    forward = denoiser_flops(unet, LatentShape(frames, channels, height, width))
    passes = forward_passes(config)
    windowed = min(config.window_until, config.optim.iterations)
    share = config.window_height * config.window_width / (config.height * config.width)
    iterations = config.optim.iterations - windowed + windowed * share
    return int(forward * passes * iterations * config.optim.batch)


def forward_passes(config: Denoising) -> float:
    """Forward passes that one row of an iteration costs as much as, on average over the run."""
    step = 4 if config.runtime.checkpointing else 3
    if not isinstance(config, ConsistencyConfig):
        return step
    distil, noise, total = config.distil, preset(config.preset).noise, 0.0
    halves = 1 if distil.min_guidance == distil.max_guidance == 1 else 2
    for count in distil.levels:
        levels = lcm_sigmas(count, noise.sigma_min, noise.sigma_max, noise.rho)
        weights = level_weights(levels, noise, config.p_mean, config.p_std)
        left = float((weights / weights.sum() * torch.arange(count, 0, -1)).sum())  # levels from the drawn one on
        points, solved, answers = (left, left, 0) if distil.solve_to_end else (1.0, 1.0, 1)
        total += points * step + solved * distil.substeps * halves + answers
    return total / len(distil.levels)


def _kept(unet: UNetSpatioTemporalConditionModel, config: Denoising, inputs: dict[str, tuple[int, ...]]) -> int:
    """Bytes that autograd keeps of one call."""
    counter = _Counter(unet)
    largest_inside = [0]
    if config.runtime.checkpointing:
        unet.enable_gradient_checkpointing()
        for module in unet.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = _segments(unet, counter, largest_inside)
    inputs_meta = {name: torch.zeros(shape, device="meta") for name, shape in inputs.items()}
    low = config.runtime.precision == "bfloat16"
    with counter.counting(), AttentionReplaced(_Fused.apply), torch.autocast("cpu", torch.bfloat16, enabled=low):
        unet(
            torch.cat([inputs_meta["noisy"], inputs_meta["concat"]], dim=2),
            inputs_meta["sigma"],
            encoder_hidden_states=inputs_meta["context"],
            added_time_ids=inputs_meta["vector"],
            return_dict=False,
        )
    return counter.bytes + largest_inside[0]


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs and its output, as fused kernels do, not the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An output of the right shape; nothing is computed on the meta device."""
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


class _Counter:
    """Adds up what autograd keeps, each storage once, parameters not at all."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        self._seen = {p.untyped_storage()._cdata for p in unet.parameters()}
        self._alive: list[Tensor] = []
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)  # a freed storage's address may come again
            self.bytes += storage.nbytes()
        return tensor

    def counting(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.add, lambda tensor: tensor)


def _segments(unet: UNetSpatioTemporalConditionModel, outside: _Counter, largest: list[int]) -> Callable[..., Any]:
    """In the place of checkpointing: keep a segment's inputs, and count what is inside apart."""

    def segment(module: nn.Module, *args: Any) -> Any:
        for tensor in args:
            if isinstance(tensor, Tensor):
                outside.add(tensor)
        inside = _Counter(unet)
        with inside.counting():
            out = module(*args)
        largest[0] = max(largest[0], inside.bytes)
        return out

    return segment
