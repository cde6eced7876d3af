"""The plan of a run: what it counts is what autograd keeps of a real call, and what more processes save."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from model.memory.compute import denoiser_flops
from model.optimized.rewrites import rewrite_exactly
from model.shapes import LatentShape
from model.tasks import task
from tests.unit.training import toy_run
from training.config import ConsistencyConfig, DenoiserConfig, Runtime
from training.initial_weights import empty_network, unet_of
from training.memory_plan import GIB, describe_arithmetic, forward_passes, inputs_of, meta_network, plan, run_flops
from training.recipes import PUBLISHED, RECIPES


def kept_of_a_real_call(config: DenoiserConfig) -> int:
    """Bytes of the distinct storages that autograd keeps of one call on the CPU."""
    unet = unet_of(empty_network(dataclasses.asdict(config)))
    rewrite_exactly(unet, context_tokens=task(config.task).context_tokens)
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    given = {name: torch.ones(shape) for name, shape in inputs_of(config, 1).items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = unet(
            torch.cat([given["noisy"], given["concat"]], 2),
            given["sigma"],
            encoder_hidden_states=given["context"],
            added_time_ids=given["vector"],
        ).sample
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_plan_counts_what_a_real_call_keeps() -> None:
    optim = dataclasses.replace(toy_run.config().optim, batch=1)
    config = dataclasses.replace(toy_run.config(), height=128, width=128, optim=optim)
    real = kept_of_a_real_call(config)
    planned = plan(config)
    assert abs(planned.activations - real) < 0.1 * real
    assert planned.states == 5 * 4 * planned.parameters
    muon = plan(dataclasses.replace(config, optim=dataclasses.replace(optim, method="muon")))
    assert 4 * 4 * planned.parameters < muon.states < 4.1 * 4 * planned.parameters


@pytest.mark.slow
def test_recomputing_and_more_processes_take_less() -> None:
    config = dataclasses.replace(toy_run.config(), height=128, width=128)
    plain = plan(config)
    recomputed = plan(dataclasses.replace(config, runtime=Runtime(checkpointing=True)))
    assert recomputed.activations < 0.8 * plain.activations
    sharded = plan(dataclasses.replace(config, runtime=Runtime(sharding="fsdp2")), processes=4)
    assert sharded.states <= plain.states / 4 + 100
    assert plan(dataclasses.replace(config, runtime=Runtime(accumulate=2))).inputs["noisy"][0] == 1


@pytest.mark.slow
def test_arithmetic_is_passes_times_what_a_call_takes() -> None:
    """A step is three forward passes, four where blocks are computed again; a distillation adds its teacher."""
    config = dataclasses.replace(toy_run.config(), height=64, width=64)
    once = run_flops(config) / (3 * config.optim.iterations * config.optim.batch)
    assert run_flops(dataclasses.replace(config, runtime=Runtime(checkpointing=True))) == pytest.approx(
        4 / 3 * run_flops(config)
    )
    halved = dataclasses.replace(config, window_until=config.optim.iterations, window_height=32, window_width=64)
    assert run_flops(halved) == pytest.approx(run_flops(config) / 2)
    assert re.search(r"PFLOP, [\d.e-]+ GPU hours", describe_arithmetic(config))
    unet = meta_network(config)
    assert once == pytest.approx(denoiser_flops(unet, LatentShape(config.num_frames, 4, 8, 8)), rel=0.01)


def test_a_distillation_counts_its_teacher() -> None:
    fast = RECIPES["mini-image-to-video-fast"]()
    assert isinstance(fast, ConsistencyConfig)
    one = dataclasses.replace(fast.distil, levels=(1,), default_steps=1, substeps=2)
    assert forward_passes(dataclasses.replace(fast, distil=one)) == 3 + 2 * 2  # a step; two guided steps of the teacher
    consistency = dataclasses.replace(one, solve_to_end=False, substeps=1, max_guidance=1.0)
    assert forward_passes(dataclasses.replace(fast, distil=consistency)) == 3 + 1 + 1
    four = forward_passes(fast)
    assert 3 + 2 < four < 4 * (3 + 2), "a solve serves the levels that it passes"
    planned = plan(dataclasses.replace(fast, preset="tiny", height=64, width=64, num_frames=3))
    assert planned.teacher == 4 * planned.parameters
    assert "teacher" in planned.lines()[-1]


@pytest.mark.slow
def test_a_published_stage_is_planned_at_its_real_size() -> None:
    lines = plan(PUBLISHED["image-to-video-14"](), processes=8).lines()
    assert lines[0] == "parameters 1,524,623,082, of which 1,524,623,082 train"
    assert "noisy [1, 14, 4, 72, 128]" in lines
    assert plan(PUBLISHED["image-to-video-14"](), processes=8).states < 4 * GIB
