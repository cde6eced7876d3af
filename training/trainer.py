"""The training loop: an optimizer, EMA, a log, and checkpoints from which a resumed run goes on exactly.

A run folder holds config.json, log.jsonl (one line every few iterations), tensorboard/, and state.pt, replaced
atomically, so that a kill or a full disk during a save never costs the previous one. While a sharded run goes on, its
state lies in sharded/ in parts (training.sharded_checkpoint); state.pt is made of them at the end.

Batches and noise are functions of (seed, step), so the losses after a resume equal those of an uninterrupted run to
float rounding. What is whole in every process is written by the first.
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
from torch import Tensor, nn

from model.errors import DataError
from training import sharded_checkpoint
from training.config import Config, Optim, ProgressCallback
from training.distributed import (
    average_plain_gradients,
    clip_gradients,
    distribute_like,
    is_sharded,
    local_shard,
    rank_and_size,
)
from training.memory_plan import PeakMemory, describe, log_values
from training.objectives.protocol import Objective
from training.optimizers import EMA, MOMENTS, build_optimizer
from training.overrides import completed
from training.run_log import RunLog
from training.runs import STATE

_MAY_CHANGE = ("runtime", "most_unreadable")
"""Between two runs: how the work is laid out, and when to stop; not what is computed."""


def has_state(folder: Path) -> bool:
    """Whether a run's folder holds a state to go on from."""
    return (folder / STATE).exists() or sharded_checkpoint.latest(folder) is not None


def _step_of(path: Path) -> int:
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])


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
        """Replace the saved state by the present one; a collective call where the network is sharded.

        Raises:
            DataError: it cannot be written (a full disk, say); the state saved before is still there.
        """
        try:
            if self._sharded:
                sharded_checkpoint.save(self.folder, self.step, self._state())
            elif rank_and_size()[0] == 0:
                self._write(self._state())
        except sharded_checkpoint.WRITING_ERRORS as error:  # torch's writer wraps the system's error in one of its own
            previous = "the one saved before is still there" if has_state(self.folder) else "none is there yet"
            raise DataError(
                f"the state at iteration {self.step} could not be written to {self.folder} ({error}); {previous}. "
                "Make room and go on with --resume"
            ) from error

    @property
    def _sharded(self) -> bool:
        return is_sharded(self.objective.module.parameters())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "module": dict(self.objective.module.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.average,
            "ema_updates": self.ema.updates,
            "other_emas": [other.average for other in self.others],
            "config": dataclasses.asdict(self.config),
        }

    def _write(self, state: dict[str, Any]) -> None:
        """Replace state.pt in one step; sharded states before it go."""
        partial = self.folder / "state.partial"
        try:
            with partial.open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError):
            partial.unlink(missing_ok=True)
            raise
        partial.replace(self.folder / STATE)
        sharded_checkpoint.remove(self.folder)

    def merge(self) -> None:
        """Make one state.pt of a sharded state, in the first process alone: what other runs and releases read."""
        folder = sharded_checkpoint.latest(self.folder)
        if folder is not None and rank_and_size()[0] == 0:
            self._write(sharded_checkpoint.merge(folder))

    def resume(self) -> None:
        """Go on from the newest saved state; a collective call where the network is sharded.

        Raises:
            DataError: there is none, or it is of another config.
        """
        path, folder = self.folder / STATE, sharded_checkpoint.latest(self.folder)
        if folder is not None and not (path.exists() and _step_of(path) > sharded_checkpoint.plain_of(folder)["step"]):
            self._check(folder, sharded_checkpoint.plain_of(folder)["config"])
            state = sharded_checkpoint.load(folder, self._layout())
        elif path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=self._sharded)
            self._check(path, state["config"])
        else:
            raise DataError(f"{path} does not exist: there is nothing to resume; start without --resume")
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
        ema.average = {
            name: distribute_like(value, own[name]).to(own[name].device).clone() for name, value in average.items()
        }
        ema.updates = updates

    def _layout(self) -> dict[str, Tensor]:
        """By flat name (training.sharded_checkpoint), a tensor laid out as that part of the state is to be."""
        module = self.objective.module
        own = {f"module/{name}": value for name, value in module.state_dict().items()}
        for part in ("ema", *(f"other_emas/{k}" for k in range(len(self.others)))):
            own |= {f"{part}/{name}": p.detach() for name, p in module.named_parameters()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(parameters):
            own |= {f"optimizer/{index}/{name}": p.detach() for name in MOMENTS}
        return own

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
        self.merge()
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
