"""How a checkpoint is prepared for its device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.engine import loaded_model


@pytest.mark.parametrize(
    ("backend", "device", "compiled"),
    [
        ("torch-compiled", "cuda", True),
        ("torch-graphed", "cuda:1", True),
        ("torch", "cuda", False),
        ("torch-compiled", "cpu", False),
    ],
)
def test_the_autoencoder_is_compiled_beside_a_compiled_denoiser(
    backend: str, device: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(loaded_model, "fuse", lambda _, ops: done.append("fused"))
    monkeypatch.setattr(loaded_model, "compile_blocks", lambda _: done.append("compiled"))
    vae: Any = None
    loaded_model.optimize_vae(vae, backend, torch.device(device))
    assert done == ["fused", *(["compiled"] if compiled else [])]
