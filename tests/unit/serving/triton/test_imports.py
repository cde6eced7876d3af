"""The gateway's side of Triton, and what starts a server, bring no torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_layers import HEAVY, imported_by


@pytest.mark.parametrize("module", ["client", "pool", "wire", "server", "hosting"])
def test_it_brings_no_torch(module: str, root: Path) -> None:
    assert not imported_by(f"import serving.triton.{module}", root) & HEAVY
