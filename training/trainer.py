"""The training loop: AdamW, EMA, a log, and checkpoints from which a resumed run goes on exactly.

A run folder holds config.json, log.jsonl (one line every few iterations), and state.pt, replaced atomically, so that a
kill or a full disk during a save never costs the previous one. Batches and noise are functions of (seed, step), so the
losses after a resume equal those of an uninterrupted run to float rounding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.errors import DataError
from training.config import Config, Optim
from training.ema import EMA
from training.objectives.protocol import Objective

Report = Callable[[str, int, int], None]


def learning_rate(optim: Optim, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr_share * lr`."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, optim.iterations - optim.warmup)
    floor = optim.final_lr_share
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """One run of one objective.

    Args:
        folder: the run folder.
        config: written beside the run; a resumed run must have the same.
    """

    def __init__(self, objective: Objective, config: Config, folder: Path) -> None:
        self.objective, self.config, self.folder = objective, config, folder
        optim = config.optim
        self.ema = EMA(objective.module, optim.ema_decay)
        self.optimizer = torch.optim.AdamW(
            objective.module.parameters(), lr=optim.lr, betas=(0.9, optim.beta2), weight_decay=optim.weight_decay
        )
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Replace state.pt by the present state."""
        state = {
            "step": self.step,
            "module": self.objective.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.average,
            "ema_updates": self.ema.updates,
            "config": dataclasses.asdict(self.config),
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "state.pt")

    def resume(self) -> None:
        """Go on from state.pt.

        Raises:
            DataError: there is none, or it is of another config.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            raise DataError(f"{path} does not exist: there is nothing to resume; start without --resume")
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if json.dumps(state["config"]) != json.dumps(dataclasses.asdict(self.config)):
            raise DataError(f"{path} is of a run with another config; start a new folder or resume with the same")
        self.step = state["step"]
        self.objective.enter(self.step)
        self.objective.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.average, self.ema.updates = state["ema"], state["ema_updates"]

    def run(self, report: Report = lambda *_: None, *, until: int | None = None) -> None:
        """Train to the end (or to iteration `until`), saving as it goes.

        Raises:
            DataError: the loss is not finite; the state before that iteration is kept in state.pt.
        """
        optim = self.config.optim
        last = min(until or optim.iterations, optim.iterations)
        (self.folder / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
        began, began_at = time.monotonic(), self.step
        sums: dict[str, float] = {}
        with (self.folder / "log.jsonl").open("a") as log:
            while self.step < last:
                for name, value in self._iterate().items():
                    sums[name] = sums.get(name, 0.0) + value / optim.log_every
                if self.step % optim.log_every == 0:
                    rate = (time.monotonic() - began) / (self.step - began_at)
                    line = {"step": self.step, "s_per_iteration": round(rate, 4), **sums}
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    report(" ".join(f"{k} {v:.4f}" for k, v in sums.items()), self.step, last)
                    sums = {}
                if self.step % optim.checkpoint_every == 0 or self.step == last:
                    self.save()

    def _iterate(self) -> dict[str, float]:
        optim, module = self.config.optim, self.objective.module
        self.objective.enter(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, self.step) * self.objective.rate(self.step)
        parts = self.objective.backward(self.step)
        if not math.isfinite(parts["loss"]):
            self.save()
            raise DataError(f"the loss is {parts['loss']} at iteration {self.step}; the state before it is saved")
        nn.utils.clip_grad_norm_(module.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(module)
        self.step += 1
        return parts
