"""The training loop: an optimizer, EMA, a log, and checkpoints from which a resumed run goes on exactly.

A run folder holds config.json, log.jsonl (one line every few iterations), tensorboard/, and state.pt, replaced
atomically, so that a kill or a full disk during a save never costs the previous one. Batches and noise are functions of
(seed, step), so the losses after a resume equal those of an uninterrupted run to float rounding. Of several processes
the first one writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.errors import DataError
from training.config import Config, Optim, ProgressCallback, completed
from training.distributed import (
    average_plain_gradients,
    clip_gradients,
    distribute_like,
    gather_full,
    local_shard,
    rank_and_size,
)
from training.memory_plan import PeakMemory, describe, log_values
from training.objectives.protocol import Objective
from training.optimizers import EMA, build_optimizer
from training.run_log import RunLog

_MAY_CHANGE = ("runtime", "most_unreadable")
"""Between two runs: how the work is laid out, and when to stop; not what is computed."""


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
        predicted: bytes that its plan says one process takes; logged beside what it takes.
        beside: what the plan counts besides the objective's module: a frozen network that adapters train in.
    """

    def __init__(
        self,
        objective: Objective,
        config: Config,
        folder: Path,
        predicted: int | None = None,
        beside: nn.Module | None = None,
    ) -> None:
        self.objective, self.config, self.folder = objective, config, folder
        self.predicted, self.beside = predicted, beside
        optim = config.optim
        self.ema = EMA(objective.module, optim.ema_decay)
        self.others = [EMA(objective.module, decay) for decay in optim.other_emas]
        self.optimizer = build_optimizer(objective.module, optim)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Replace state.pt by the present state; a collective call where the state is sharded.

        Raises:
            DataError: it cannot be written (a full disk, say); the state saved before is still there.
        """
        state = {
            "step": self.step,
            "module": gather_full(dict(self.objective.module.state_dict())),
            "optimizer": gather_full(self.optimizer.state_dict()),
            "ema": gather_full(self.ema.average),
            "ema_updates": self.ema.updates,
            "other_emas": [gather_full(other.average) for other in self.others],
            "config": dataclasses.asdict(self.config),
        }
        if rank_and_size()[0]:
            return
        partial = self.folder / "state.partial"
        try:
            with partial.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer wraps the system's error in one of its own
            partial.unlink(missing_ok=True)
            previous = (
                "the one saved before is still there" if (self.folder / "state.pt").exists() else "none is there yet"
            )
            raise DataError(
                f"the state at iteration {self.step} could not be written to {self.folder} ({error}); {previous}. "
                "Make room and go on with --resume"
            ) from error
        partial.replace(self.folder / "state.pt")

    def resume(self) -> None:
        """Go on from state.pt.

        Raises:
            DataError: there is none, or it is of another config.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            raise DataError(f"{path} does not exist: there is nothing to resume; start without --resume")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self._check(path, state["config"])
        self.step = state["step"]
        self.objective.enter(self.step)
        module = self.objective.module
        layout = dict(module.state_dict())
        module.load_state_dict({name: distribute_like(value, layout[name]) for name, value in state["module"].items()})
        self.optimizer.load_state_dict(self._placed(state["optimizer"]))
        averages = [state["ema"], *state.get("other_emas", ())]
        for ema, average in zip((self.ema, *self.others), averages, strict=True):
            self._restore(ema, average, state["ema_updates"])

    def _restore(self, ema: EMA, average: dict[str, Any], updates: int) -> None:
        own = dict(self.objective.module.named_parameters())
        ema.average = {name: distribute_like(value, own[name]).to(own[name].device) for name, value in average.items()}
        ema.updates = updates

    def _check(self, path: Path, saved: dict[str, Any]) -> None:
        """Refuse a state of another run, by what differs."""
        ours = json.loads(json.dumps(dataclasses.asdict(self.config)))
        # A setting that came later had its default in an older run.
        saved = json.loads(json.dumps(completed(self.config, saved)))
        other = sorted(k for k in ours.keys() | saved.keys() if k not in _MAY_CHANGE and ours.get(k) != saved.get(k))
        if other:
            differences = ", ".join(f"{name} {saved.get(name)!r}, not {ours.get(name)!r}" for name in other)
            raise DataError(
                f"{path} is of a run with another config: {differences}; start a new folder or resume with the same"
            )

    def _placed(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's whole state, laid out as its parameters are."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {
                name: distribute_like(value, parameters[index]) if name != "step" else value
                for name, value in one.items()
            }
            for index, one in state["state"].items()
        }
        return {**state, "state": moments}

    def run(self, report: ProgressCallback = lambda *_: None, *, until: int | None = None) -> None:
        """Train to the end (or to iteration `until`), saving as it goes.

        Raises:
            DataError: the loss is not finite; the state before that iteration is kept in state.pt.
        """
        optim = self.config.optim
        last = min(until or optim.iterations, optim.iterations)
        first = rank_and_size()[0] == 0
        if first:
            (self.folder / "config.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
        began, began_at, memory = time.monotonic(), self.step, self._memory()
        sums: dict[str, float] = {}
        with RunLog(self.folder if first else None) as run_log:
            while self.step < last:
                for name, value in self._iterate().items():
                    sums[name] = sums.get(name, 0.0) + value / optim.log_every
                if self.step % optim.log_every == 0:
                    rate = (time.monotonic() - began) / (self.step - began_at)
                    memory_values = log_values(self.predicted, memory.bytes)
                    run_log.log(self.step, {"s_per_iteration": round(rate, 4), **memory_values, **sums})
                    report(" ".join(f"{k} {v:.4f}" for k, v in sums.items()), self.step, last)
                    sums = {}
                if self.step % optim.checkpoint_every == 0 or self.step == last:
                    self.save()
                    with self.ema.swap_weights(self.objective.module):
                        run_log.samples(self.step, self.objective)
        report(describe(self.predicted, memory.bytes), 0, 0)

    def _memory(self) -> PeakMemory:
        """Counts from now on, the network, its average and the optimizer's states included."""
        parameters = [*self.objective.module.parameters(), *(self.beside.parameters() if self.beside else ())]
        states = [value for one in self.optimizer.state.values() for value in one.values() if torch.is_tensor(value)]
        tensors = [local_shard(tensor) for tensor in (*parameters, *self.ema.average.values(), *states)]
        return PeakMemory(parameters[0].device, tensors)

    def _iterate(self) -> dict[str, float]:
        optim, module = self.config.optim, self.objective.module
        self.objective.enter(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, self.step) * self.objective.rate(self.step)
        parts = self.objective.backward(self.step)
        if not math.isfinite(parts["loss"]):
            self.save()
            names = ", ".join(self.objective.names(self.step))
            raise DataError(
                f"the loss is {parts['loss']} at iteration {self.step}, on {names}; the state before it is saved"
            )
        trained = [p for p in module.parameters() if p.grad is not None]
        average_plain_gradients(trained)
        clip_gradients(trained, optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for ema in (self.ema, *self.others):
            ema.update(module)
        self.step += 1
        return parts
