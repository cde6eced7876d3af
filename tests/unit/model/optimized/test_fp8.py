"""8-bit floats: which layers are quantized, the rule by which rows are rounded, and what is refused with its remedy."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.fp8_quality import rounded, simulated
from model.backends.compiled import compile_blocks
from model.backends.registry import check_lora, make_denoiser, with_usable_loras
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.denoiser import BackendOptions, CpuThreads
from model.errors import InvalidRequest, MissingExtra
from model.lora.catalog import LoraEntry, LoraUse
from model.optimized.fp8 import check_fp8, float8_weight, quantize_fp8
from model.optimized.fused_blocks import fuse
from model.optimized.rewrites import relative_difference
from model.presets import NoiseRange, UNetSize, preset
from model.tasks import task
from model.unet import build_unet
from serving.engine import loaded_model
from serving.engine.settings import EngineSettings

with_torchao = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao, of [fp8], is not installed")
without_torchao = pytest.mark.skipif(bool(importlib.util.find_spec("torchao")), reason="torchao is installed")


def small_unet(channels: tuple[int, ...] = (32, 64)) -> nn.Module:
    torch.manual_seed(0)
    size = replace(preset("tiny"), unet=UNetSize(channels, (2,) * len(channels), 1, 32), num_frames=3)
    unet = build_unet(size, task("image-to-video")).eval().requires_grad_(False)
    fuse(unet)
    return unet


def answer(unet: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    clip, context = torch.randn(2, 3, 8, 8, 8, generator=g), torch.randn(2, 1, 32, generator=g)
    dtype = next(unet.parameters()).dtype
    with torch.inference_mode():
        output: Tensor = unet(
            clip.to(dtype),
            torch.linspace(-1.2, 1.6, 2),
            context.to(dtype),
            added_time_ids=torch.rand(2, 3, generator=g),
            return_dict=False,
        )[0]
    return output.float()


class Quantized(Tensor):
    """A weight that says it was quantized."""


def test_products_over_tokens_are_quantized_and_no_embedding_convolution_or_context_is() -> None:
    unet = small_unet()
    count = quantize_fp8(unet, lambda weight: weight.as_subclass(Quantized))
    named = {**dict(unet.named_parameters()), **dict(unet.named_buffers())}
    quantized = {name for name, value in named.items() if isinstance(value, Quantized)}
    assert len(quantized) == count > 0
    ends = ("proj_in.weight", "proj_out.weight", "attn1.stacked", "attn1.to_out.0.weight")
    ends += ("ff.net.0.proj.weight", "ff.net.2.weight", "ff_in.net.0.proj.weight", "ff_in.net.2.weight")
    assert quantized == {name for name in named if name.endswith(ends)}
    for part in ("time_embedding", "add_embedding", "time_emb_proj", "time_pos_embed", "attn2", "conv"):
        assert any(part in name for name in named)
        assert not any(part in name for name in quantized), part


def test_queries_keys_and_values_are_held_once() -> None:
    unet = small_unet()
    before = sum(weight.numel() for weight in unet.parameters())
    quantize_fp8(unet, simulated)
    attentions = [layer for name, layer in unet.named_modules() if name.endswith("attn1")]
    dropped = sum(attn.stacked.numel() for attn in attentions)  # type: ignore[operator, union-attr]
    assert before - sum(weight.numel() for weight in unet.parameters()) == dropped > 0


def nearest(row: list[float]) -> list[float]:
    """A row rounded by E4M3's definition: 3 bits after the leading one, exponents down to -6, 448 at most."""
    scale = max(map(abs, row)) / 448
    out = []
    for value in row:
        magnitude = abs(value) / scale
        exponent = max(-6, int(torch.tensor(magnitude).log2().floor())) if magnitude else -6
        step = 2.0 ** (exponent - 3)
        out.append(round(magnitude / step) * step * scale * (1 if value >= 0 else -1))
    return out


def test_rows_are_rounded_each_by_its_own_scale() -> None:
    rows = torch.tensor([[1.0, -0.3, 0.011, 0.0], [3e4, 5.0, -777.0, 2.5e4], [0.0, 0.0, 0.0, 0.0]])
    mine = rounded(rows)
    for row, expected in zip(mine[:2].tolist(), (nearest(row) for row in rows[:2].tolist()), strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    assert not mine[2].any()


def test_a_simulated_network_is_near_the_exact_one_and_not_the_same() -> None:
    plain = small_unet()
    quantized = copy.deepcopy(plain)
    quantize_fp8(quantized, simulated)
    assert 1e-4 < relative_difference(answer(quantized), answer(plain)) < 0.2


def test_a_device_or_dtype_that_cannot_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match=r"8\.9 or later .* this is a CPU: leave it out") as caught:
        check_fp8(torch.device("cpu"), torch.bfloat16)
    assert caught.value.param == "fp8"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(InvalidRequest, match=r"this is NVIDIA A100 \(8\.0\): leave it out"):
        check_fp8(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(InvalidRequest, match="add --dtype bfloat16"):
        check_fp8(torch.device("cuda"), torch.float16)


@without_torchao
def test_a_missing_torchao_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(MissingExtra, match=r"\[fp8\] extra"):
        check_fp8(torch.device("cuda"), torch.bfloat16)


def test_settings_say_what_goes_with_it() -> None:
    with pytest.raises(InvalidRequest, match="add --dtype bfloat16"):
        EngineSettings(fp8=True)
    with pytest.raises(InvalidRequest, match="leave --vram-budget or --fp8 out"):
        EngineSettings(fp8=True, dtype="bfloat16", vram_budget_gib=8.0)
    chosen = EngineSettings(fp8=True, dtype="bfloat16")
    assert EngineSettings.from_manifest(chosen.as_manifest()) == chosen
    assert not EngineSettings().fp8


def test_an_engine_refuses_it_on_a_cpu_and_for_graphs_and_offers_no_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ModelEntry("mini", tmp_path, task("image-to-video"), "0", (14,), 64, 64, 8, {})
    unet: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    nothing: Any = None
    checkpoint = Checkpoint(entry, unet, nothing, nothing, NoiseRange(0.02, 20.0))
    monkeypatch.setattr(loaded_model, "load", lambda *_, **__: checkpoint)
    with pytest.raises(InvalidRequest, match="this is a CPU"):
        loaded_model.load_model(entry, EngineSettings(backend="torch", device="cpu", dtype="bfloat16", fp8=True))
    with pytest.raises(InvalidRequest, match="leave --fp8 out"):
        make_denoiser("onnxruntime", checkpoint, CpuThreads(1), BackendOptions(fp8=True))
    with pytest.raises(InvalidRequest, match="leave --fp8 out, or ask for no LoRA") as caught:
        check_lora(entry, "torch", LoraUse("pan", "0", 1.0), fp8=True)
    assert caught.value.code == "lora_unsupported"
    offering = replace(entry, loras=(LoraEntry("pan", tmp_path / "pan.safetensors", "0", 4, 4.0),))
    assert [with_usable_loras(offering, "torch", fp8=fp8).loras for fp8 in (False, True)] == [offering.loras, ()]


@with_torchao
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torchao's own, at its import
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_computes_what_is_simulated(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(48, 64, generator=g).to(dtype), torch.randn(48, generator=g).to(dtype)
    rows = (torch.randn(2, 7, 64, generator=g) * torch.logspace(-3, 3, 7)[:, None]).to(dtype)
    with torch.inference_mode():
        answers = [nn.functional.linear(rows, make(weight), bias) for make in (float8_weight, simulated)]
    assert answers[0].dtype == answers[1].dtype == dtype
    apart = (answers[0] - answers[1]).abs() / answers[1].abs().amax(-1, keepdim=True)
    assert float(apart.max()) < (1e-5 if dtype == torch.float32 else 1e-2)
    networks = [small_unet(), small_unet()]
    makers: tuple[Callable[[Tensor], Tensor], ...] = (float8_weight, simulated)
    for network, make in zip(networks, makers, strict=True):
        quantize_fp8(network, make)
    assert relative_difference(answer(networks[0]), answer(networks[1])) < 0.03  # a number may round the other way


@with_torchao
@pytest.mark.full  # minutes of tracing
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_take_quantized_weights() -> None:
    plain = small_unet((32,))
    quantize_fp8(plain)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, backend="aot_eager")
    assert relative_difference(answer(compiled), answer(plain)) < 1e-5
