"""A LoRA in the weights: PEFT's numbers, whatever was applied before, and none of it once it is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backends.cuda_graph import CudaGraphDenoiser, Recording
from model.denoiser import AdaptableDenoiser, CpuThreads, Denoiser, DenoiserInputs, TorchDenoiser, caching
from model.errors import CheckpointError, InvalidRequest
from model.lora.catalog import LoraUse, describe_lora
from model.lora.merge import LoraDenoiser, switching_bytes, with_loras
from model.lora.weights import Lora, read_lora, temporal_projections
from model.optimized.attention import scaled_dot_product
from model.optimized.feature_cache import FeatureCacheDenoiser
from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from tests.support.loras import drawn_lora, kohya_lora

TOLERANCE = 1e-5
"""Largest difference over largest magnitude, float32 on a CPU."""
ALPHA = 6.0


@pytest.fixture(scope="module")
def unet() -> UNetSpatioTemporalConditionModel:
    """The tiny one, as diffusers computes it."""
    torch.manual_seed(2)
    return build_unet(preset("tiny"), task("image-to-video"), num_frames=3).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def loras(unet: UNetSpatioTemporalConditionModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lora]:
    folder = tmp_path_factory.mktemp("loras")
    found = [drawn_lora(folder / f"{name}.safetensors", unet, seed, alpha=ALPHA) for seed, name in enumerate("ab")]
    return {entry.name: read_lora(entry, unet) for entry in found}


def inputs(seed: int = 0) -> DenoiserInputs:
    g = torch.Generator().manual_seed(seed)
    return DenoiserInputs(
        torch.randn(2, 3, 4, 8, 8, generator=g),
        torch.tensor([-0.4, 1.1]),
        torch.randn(2, 1, 32, generator=g),
        torch.randn(2, 3, 4, 8, 8, generator=g),
        torch.rand(2, 3, generator=g),
    )


def use(loras: dict[str, Lora], name: str, scale: float = 1.0) -> LoraUse:
    return LoraUse(name, loras[name].entry.version, scale)


def adapted(unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]) -> LoraDenoiser:
    """As it is served: fused, on one thread."""
    ours = copy.deepcopy(unet)
    fuse(ours, scaled_dot_product)
    made = with_loras(TorchDenoiser(ours, CpuThreads(1)), ours, loras)
    assert isinstance(made, LoraDenoiser)
    return made


def peft_s(
    unet: UNetSpatioTemporalConditionModel, lora: Lora, scale: float, file: Path | None = None
) -> Callable[[], Tensor]:
    """The same file (or `file`, under PEFT's names) through PEFT's own layers, beside the unmodified network."""
    theirs = copy.deepcopy(unet)
    config = LoraConfig(r=lora.entry.rank, lora_alpha=ALPHA * scale, target_modules=list(lora.pairs))
    inject_adapter_in_model(config, theirs, adapter_name="default")
    state = {key.removeprefix("unet."): value for key, value in load_file(file or lora.entry.path).items()}
    told = set_peft_model_state_dict(theirs, state, adapter_name="default")
    assert not told.unexpected_keys
    latents, timestep, context, concat, vector = inputs().as_tuple()

    def run() -> Tensor:
        with torch.inference_mode():
            out: Tensor = theirs(torch.cat([latents, concat], 2), timestep, context, added_time_ids=vector).sample
        return out

    return run


@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_it_computes_what_peft_does(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora], scale: float
) -> None:
    denoiser = adapted(unet, loras)
    plain = denoiser(inputs())
    denoiser.set_lora(use(loras, "a", scale))
    ours, theirs = denoiser(inputs()), peft_s(unet, loras["a"], scale)()
    assert relative_difference(ours, theirs) < TOLERANCE
    assert relative_difference(ours, plain) > 0.01, "the adapter is to be seen"


def test_one_of_every_layer_under_kohya_s_names_computes_what_peft_does(
    unet: UNetSpatioTemporalConditionModel, tmp_path: Path
) -> None:
    entry, peft = kohya_lora(tmp_path / "style.safetensors", unet, 3, alpha=ALPHA)
    lora = read_lora(entry, unet)
    assert len(lora.pairs) > 2 * len(temporal_projections(unet))
    denoiser = adapted(unet, {entry.name: lora})
    plain = denoiser(inputs())
    denoiser.set_lora(LoraUse(entry.name, entry.version, 0.3))
    ours = denoiser(inputs())
    assert relative_difference(ours, peft_s(unet, lora, 0.3, peft)()) < TOLERANCE
    assert relative_difference(ours, plain) > 0.01
    denoiser.set_lora(None)
    assert torch.equal(denoiser(inputs()), plain)


def test_what_was_applied_before_leaves_no_trace(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]
) -> None:
    denoiser = adapted(unet, loras)
    wanted = [
        None,
        use(loras, "a"),
        use(loras, "b"),
        use(loras, "a", 0.5),
        None,
        use(loras, "b"),
        use(loras, "a"),
        None,
    ]
    seen: dict[LoraUse | None, Tensor] = {}
    for one in wanted:
        denoiser.set_lora(one)
        answer = denoiser(inputs())
        assert torch.equal(answer, seen.setdefault(one, answer)), one
    fresh = copy.deepcopy(unet)
    fuse(fresh, scaled_dot_product)
    assert torch.equal(seen[None], TorchDenoiser(fresh, CpuThreads(1))(inputs())), "as without any LoRA"
    others = list(seen.values())
    assert all(relative_difference(one, other) > 1e-3 for one in others for other in others if one is not other)


def test_a_change_that_memory_broke_off_is_made_again(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]
) -> None:
    class Exhausted(dict[str, tuple[Tensor, Tensor]]):
        """Pairs, of which the third cannot be had."""

        left = 2

        def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
            self.left -= 1
            if self.left < 0:
                raise MemoryError
            return super().__getitem__(name)

    broken = Lora(loras["b"].entry, Exhausted(loras["b"].pairs))
    denoiser = adapted(unet, {"a": loras["a"], "b": broken})
    plain = denoiser(inputs())
    with pytest.raises(MemoryError):
        denoiser.set_lora(use(loras, "b"))
    denoiser.set_lora(None)
    assert torch.equal(denoiser(inputs()), plain)


def test_half_precision_rounds_the_merged_weights_once(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]
) -> None:
    half = copy.deepcopy(unet).bfloat16()
    fuse(half, scaled_dot_product)
    denoiser = with_loras(TorchDenoiser(half, CpuThreads(1)), half, loras)
    assert isinstance(denoiser, AdaptableDenoiser)
    denoiser.set_lora(use(loras, "a", 0.5))
    for name, layer in temporal_projections(half).items():
        down, up = loras["a"].pairs[name]
        wanted = temporal_projections(unet)[name].weight.bfloat16().float() + 0.5 * ALPHA / 4 * (up @ down)
        assert torch.equal(layer.weight, wanted.bfloat16()), name


def test_reused_features_are_still_reused(unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]) -> None:
    ours = copy.deepcopy(unet)
    fuse(ours, scaled_dot_product)
    inner = FeatureCacheDenoiser(ours, CpuThreads(1), 2)
    denoiser: Denoiser = with_loras(inner, ours, loras)
    cached = caching(denoiser)
    assert cached is not None
    assert isinstance(denoiser, AdaptableDenoiser)
    denoiser.set_lora(use(loras, "a"))
    whole, kept = cached.run_with_cache(inputs(), [None], [2])
    assert relative_difference(whole, peft_s(unet, loras["a"], 1.0)()) < TOLERANCE
    outer, _ = cached.run_with_cache(inputs(), kept, [2])
    assert relative_difference(outer, whole) < TOLERANCE


def test_one_that_was_not_loaded_is_refused(unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]) -> None:
    denoiser = adapted(unet, loras)
    for wanted in (LoraUse("c", "0" * 12, 1.0), LoraUse("a", "0" * 12, 1.0)):
        with pytest.raises(InvalidRequest, match="is not loaded here"):
            denoiser.set_lora(wanted)
    plain = TorchDenoiser(copy.deepcopy(unet), CpuThreads(1))
    assert with_loras(plain, unet, {}) is plain


def test_what_is_kept_is_counted(unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]) -> None:
    layers = temporal_projections(unet).values()
    plain = sum(layer.weight.numel() for layer in layers)
    pairs = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert switching_bytes(unet, loras) == 4 * plain + 2 * 4 * pairs
    assert switching_bytes(unet, {}) == 0


def test_a_file_of_another_size_or_with_nan_is_refused(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora], tmp_path: Path
) -> None:
    mini = build_unet(preset("mini"), task("image-to-video"), device="meta")
    with pytest.raises(CheckpointError, match=r"another network|another size"):
        read_lora(loras["a"].entry, mini)
    weights = load_file(loras["a"].entry.path)
    first = next(iter(weights))
    weights[first][0, 0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        read_lora(describe_lora(tmp_path / "nan.safetensors"), unet)
    entry = describe_lora(tmp_path / "nan.safetensors")
    save_file(load_file(loras["a"].entry.path), tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="has changed since"):
        read_lora(entry, unet)


def test_a_recorded_call_reads_the_weights_where_a_switch_writes_them(
    unet: UNetSpatioTemporalConditionModel, loras: dict[str, Lora]
) -> None:
    """As a CUDA graph does, which holds addresses: a switch moves no weight, and a replay sees it."""
    ours = copy.deepcopy(unet)
    fuse(ours, scaled_dot_product)
    plain = adapted(unet, loras)
    graphed = LoraDenoiser(CudaGraphDenoiser(TorchDenoiser(ours, CpuThreads(1)), Replays()), ours, loras)
    addresses = {name: tensor.data_ptr() for name, tensor in (*ours.named_parameters(), *ours.named_buffers())}
    for name in (None, "a", "b", None):
        for denoiser in (plain, graphed):
            denoiser.set_lora(None if name is None else use(loras, name))
        assert torch.equal(graphed(inputs()), plain(inputs()))
    assert addresses == {name: tensor.data_ptr() for name, tensor in (*ours.named_parameters(), *ours.named_buffers())}


class Replays:
    """A Recorder whose replays make the recorded call again."""

    def record(self, call: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        output = call()
        replay = SimpleNamespace(replay=lambda: output.copy_(call()))
        return replay, output
