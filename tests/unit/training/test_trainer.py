"""The trainer: an interrupted and resumed run equals an uninterrupted one, and a failed save costs nothing."""

from __future__ import annotations

import dataclasses
import json
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.errors import DataError
from model.media.video import Frames
from training.config import Optim
from training.data.seeding import generator
from training.objectives.protocol import backward_in_parallel, backward_of
from training.optimizers import EMA
from training.recipes.vae import mini_vae
from training.runs import averaged
from training.trainer import Trainer, learning_rate

OPTIM = Optim(
    iterations=30,
    batch=4,
    lr=1e-2,
    warmup=3,
    final_lr_share=0.1,
    beta2=0.99,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.9,
    seed=5,
    checkpoint_every=10,
    log_every=1,
)
CONFIG = dataclasses.replace(mini_vae(), optim=OPTIM)


class Line:
    """Fits a line; its second parameter joins at iteration 12, as a phase would."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.poison_at = poison_at

    @property
    def module(self) -> nn.Module:
        return self.net

    def enter(self, step: int) -> None:
        self.net.bias.requires_grad_(step >= 12)

    def rate(self, step: int) -> float:
        return 1.0

    def names(self, step: int) -> list[str]:
        return [f"clip-{step}"]

    def samples(self, step: int) -> dict[str, Frames]:
        return {"grey": np.full((3, 4, 6, 3), 99, np.uint8)}

    def backward(self, step: int) -> dict[str, float]:
        x = torch.randn(4, 3, generator=generator(OPTIM.seed, step))
        error = (self.net(x)[:, 0] - x.sum(1) - 1).square().mean()
        return backward_of(error * float("nan") if step == self.poison_at else error, {})


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", [1, 10, 13, 29])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Path, stop: int) -> None:
    whole = Trainer(Line(), CONFIG, tmp_path / "whole")
    whole.run()
    Trainer(Line(), CONFIG, tmp_path / "parts").run(until=stop)
    second = Trainer(Line(), CONFIG, tmp_path / "parts")
    second.resume()
    second.run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, p in whole.objective.module.named_parameters():
        assert torch.equal(p, dict(second.objective.module.named_parameters())[name])
        assert torch.equal(whole.ema.average.get(name, p), second.ema.average.get(name, p))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(tmp_path: Path) -> None:
    trainer = Trainer(Line(poison_at=7), CONFIG, tmp_path)
    with pytest.raises(DataError, match="iteration 7, on clip-7;"):
        trainer.run()
    again = Trainer(Line(), CONFIG, tmp_path)
    again.resume()
    assert again.step == 7


def test_resuming_nothing_or_another_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to resume"):
        Trainer(Line(), CONFIG, tmp_path).resume()
    Trainer(Line(), CONFIG, tmp_path).run(until=2)
    other = dataclasses.replace(CONFIG, crop=32)
    with pytest.raises(DataError, match="another config"):
        Trainer(Line(), other, tmp_path).resume()


def test_a_state_from_before_a_setting_existed_is_resumed_with_its_default(tmp_path: Path) -> None:
    Trainer(Line(), CONFIG, tmp_path).run(until=2)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["config"]["most_unreadable"]
    torch.save(state, tmp_path / "state.pt")
    more = Trainer(Line(), dataclasses.replace(CONFIG, most_unreadable=0.5), tmp_path)
    more.resume()
    assert more.step == 2


def test_memory_is_logged_beside_what_was_predicted(tmp_path: Path) -> None:
    told: list[str] = []
    Trainer(Line(), CONFIG, tmp_path, predicted=3 * 2**29).run(lambda what, *_: told.append(what), until=2)
    assert told[-1].startswith("memory of one process: predicted 1.50 GiB, measured 0.")
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["predicted_gib"] == 1.5 and line["measured_gib"] >= 0


def test_an_unfinished_save_leaves_the_previous_state(tmp_path: Path) -> None:
    trainer = Trainer(Line(), CONFIG, tmp_path)
    trainer.run(until=10)
    (tmp_path / "state.partial").write_bytes(b"cut short")
    again = Trainer(Line(), CONFIG, tmp_path)
    again.resume()
    assert again.step == 10


def test_a_full_disk_during_a_save_leaves_the_previous_state(tmp_path: Path) -> None:
    trainer = Trainer(Line(), CONFIG, tmp_path)
    trainer.run(until=10)
    before = (tmp_path / "state.pt").read_bytes()
    trainer.step = 11
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # writing fails as on a full disk
    try:
        with pytest.raises(DataError, match=r"iteration 11 could not be written.*saved before is still there"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not (tmp_path / "state.partial").exists()


def test_tensorboard_holds_the_curve_and_the_clips(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(Line(), CONFIG, tmp_path).run(until=10)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.value for point in board.Scalars("loss")] == pytest.approx(losses(tmp_path))
    (clip,) = board.Images("clips/grey")
    assert clip.encoded_image_string.startswith(b"GIF8") and (clip.width, clip.height) == (6, 4)


def test_the_rate_warms_up_and_decays_to_its_floor() -> None:
    rates = [learning_rate(OPTIM, step) for step in range(OPTIM.iterations + 1)]
    assert rates[0] == pytest.approx(OPTIM.lr / 3)
    assert max(rates) == pytest.approx(OPTIM.lr)
    assert rates[-1] == pytest.approx(OPTIM.lr * OPTIM.final_lr_share)
    assert all(a >= b for a, b in pairwise(rates[3:]))


def test_ema_swaps_in_and_out() -> None:
    net = nn.Linear(2, 1)
    ema = EMA(net, 0.5)
    start = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(net)
    decay = 2 / 11
    with ema.swap_weights(net):
        assert torch.allclose(net.weight, start + (1 - decay))
    assert torch.allclose(net.weight, start + 1)


def test_a_frozen_parameter_leaves_the_average() -> None:
    net = nn.Linear(2, 1)
    ema = EMA(net, 0.5)
    net.bias.requires_grad_(False)
    with torch.no_grad():
        net.bias.add_(1)
    ema.update(net)
    assert set(ema.average) == {"weight"}
    frozen_at = net.bias.detach().clone()
    with ema.swap_weights(net):
        assert torch.equal(net.bias, frozen_at)


def test_gradients_in_parallel_are_those_of_the_sum() -> None:
    net = nn.Linear(3, 2)
    x = [torch.randn(4, 3) for _ in range(2)]
    losses = [(lambda part=part: net(part).square().mean()) for part in x]
    assert backward_in_parallel(losses) == pytest.approx(sum(loss().item() for loss in losses), rel=1e-6)
    together = net.weight.grad
    assert together is not None
    net.zero_grad()
    sum(loss() for loss in losses).backward()  # type: ignore[union-attr]
    assert net.weight.grad is not None
    assert torch.allclose(together, net.weight.grad, atol=1e-6)


def test_averages_of_several_lengths_go_on_after_a_resume_and_can_be_chosen(tmp_path: Path) -> None:
    optim = dataclasses.replace(OPTIM, other_emas=(0.5, 0.2))
    config = dataclasses.replace(CONFIG, optim=optim)
    whole = Trainer(Line(), config, tmp_path / "whole")
    whole.run()
    Trainer(Line(), config, tmp_path / "parts").run(until=10)
    resumed = Trainer(Line(), config, tmp_path / "parts")
    resumed.resume()
    resumed.run()
    chosen = {}
    for decay in (None, 0.9, 0.5, 0.2):
        chosen[decay], again = nn.Linear(3, 1), nn.Linear(3, 1)
        averaged(chosen[decay], tmp_path / "whole", decay)
        averaged(again, tmp_path / "parts", decay)
        assert torch.allclose(chosen[decay].weight, again.weight, atol=1e-7)
    assert torch.equal(chosen[None].weight, chosen[0.9].weight)
    last = dict(whole.objective.module.named_parameters())["weight"].detach()
    away = {decay: float((network.weight - last).norm()) for decay, network in chosen.items()}
    assert away[0.2] < away[0.5] < away[0.9], "a longer average lags more"
    with pytest.raises(DataError, match=r"it has 0\.9, 0\.5, 0\.2"):
        averaged(nn.Linear(3, 1), tmp_path / "whole", 0.7)
