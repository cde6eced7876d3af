"""What every test shares: shapes and types of `model` checked as it runs, and GPU tests skipped without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

install_import_hook("model", "beartype.beartype")

# A busy machine is no failure; pytest-timeout bounds a test that hangs.
settings.register_profile("stillmotion", deadline=None)
settings.load_profile("stillmotion")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's folder."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
