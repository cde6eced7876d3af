"""Sharded states: what is written is what is read, and an interrupted write does not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.sharded_checkpoint import flatten, latest, load, merge, remove, save, unflatten


def state(step: int) -> dict[str, Any]:
    """That of a small network after a step of AdamW."""
    torch.manual_seed(step)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    average = {name: p.detach() / 2 for name, p in network.named_parameters()}
    whole = {"module": dict(network.state_dict()), "optimizer": optimizer.state_dict(), "ema": average}
    others = [{name: value * 3 for name, value in average.items()}, average]
    return {"step": step, **whole, "other_emas": others, "ema_updates": step, "config": {"lr": 0.1}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def test_taking_a_state_apart_and_putting_it_together_changes_nothing() -> None:
    assert same(unflatten(*flatten(state(1))), state(1))


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5))
    folder = latest(tmp_path)
    assert folder is not None
    assert same(merge(folder), state(5))
    like = {"module/0.weight": torch.empty(4, 3), "ema/0.weight": torch.empty(9, 9)}
    assert same(load(folder, like), state(5))


def test_the_older_state_goes_when_the_newer_one_is_complete(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5))
    save(tmp_path, 10, state(10))
    assert [path.name for path in (tmp_path / "sharded").iterdir()] == ["000000010"]
    remove(tmp_path)
    assert latest(tmp_path) is None


def test_an_interrupted_write_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 5, state(5))
    cut_short = tmp_path / "sharded" / "000000010"
    cut_short.mkdir()
    (cut_short / "__0_0.distcp").write_bytes(b"cut short")
    folder = latest(tmp_path)
    assert folder is not None and folder.name == "000000005"


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5, state(5))

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.state_dict_saver.save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 10, state(10))
    folder = latest(tmp_path)
    assert folder is not None and same(merge(folder), state(5))
    assert not (tmp_path / "sharded" / "000000010").exists()
