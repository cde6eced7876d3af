"""The optimizers of a run, Muon and AdamW, and the exponential moving average (EMA) of the weights.

Muon moves a matrix by the nearest orthogonal matrix to its momentum, so that all directions learn equally fast:

    M <- mu M + (1 - mu) G,    U = mu M + (1 - mu) G (Nesterov),    W <- W - lr (0.2 sqrt(max(n, m)) orth(U) + decay W)

(Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the factor, with which AdamW's learning
rates fit, is of Liu et al. 2025, "Muon is scalable for LLM training".) orth(U) = (U U^T)^(-1/2) U is approached by five
steps of a Newton-Schulz iteration. A convolution's kernel is the matrix [out, in x taps]. What is no matrix inside the
network (biases, norms, embeddings, the first and the last convolution, adapters) moves by AdamW. torch.optim.Muon takes
two-dimensional parameters alone, and those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.config import Optim
from training.distributed import distribute_like, gather_full


class EMA:
    """Keeps an averaged copy of a network's trainable parameters.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that the average follows quickly at first.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's weights.

        Parameters that begin to train start from their value; frozen ones leave the average: what trains on beside
        them has only ever seen the weights they were frozen at.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in module.named_parameters():
            if not p.requires_grad:
                self.average.pop(name, None)
            else:
                average = self.average.setdefault(name, p.detach().clone())
                average.lerp_(p.detach(), 1 - decay)

    @contextmanager
    def swap_weights(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module holds the averaged weights."""
        own = {name: p.detach().clone() for name, p in module.named_parameters() if name in self.average}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in module.named_parameters():
                    if name in own:
                        p.copy_(own[name])

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module."""
        for name, p in module.named_parameters():
            if name in self.average:
                p.copy_(self.average[name])


MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")
"""Names of the optimizers' states that are shaped and laid out as their parameter is."""
MOMENTUM = 0.95
RMS = 0.2
"""Of AdamW's steps, about."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5
_ENDS = ("conv_in", "conv_out")


def build_optimizer(module: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer that a config names."""
    adamw: dict[str, Any] = {"lr": optim.lr, "betas": (0.9, optim.beta2), "weight_decay": optim.weight_decay}
    if optim.method == "adamw":
        return torch.optim.AdamW(module.parameters(), **adamw)
    return Muon(module, **adamw)


def matrix_weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and convolutions inside the network."""
    return [
        cast(nn.Parameter, layer.weight)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and name.split(".")[-1] not in _ENDS
    ]


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows or columns, [n, m].

    Singular values end in 0.7 to 1.2, but for those that are far below the largest.
    """
    wide: Tensor = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if wide is not matrix else x


def count_moments(module: nn.Module, optim: Optim) -> int:
    """Numbers that the optimizer keeps of the parameters that train: AdamW two of each, Muon one of a matrix's."""
    both = 2 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    return both if optim.method == "adamw" else both - sum(p.numel() for p in matrix_weights(module) if p.requires_grad)


class Muon(torch.optim.AdamW):
    """Muon on the matrices of a module, AdamW on its other parameters, at one learning rate.

    A sharded matrix is gathered for its step: every process computes the same.
    """

    def __init__(self, module: nn.Module, **adamw: Any) -> None:
        matrix_parameters = matrix_weights(module)
        known = {id(p) for p in matrix_parameters}
        rest = [p for p in module.parameters() if id(p) not in known]
        super().__init__([{"params": rest, "muon": False}, {"params": matrix_parameters, "muon": True}], **adamw)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        assert closure is None, "the trainer takes gradients itself"
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                for p in group["params"]:
                    self._move(p, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    @torch.no_grad()
    def _move(self, p: nn.Parameter, lr: float, decay: float) -> None:
        if p.grad is None:
            return
        state = self.state[p]
        if not state:
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))  # AdamW reads "step" of every state
        state["step"] += 1
        momentum = state["momentum"]
        momentum.lerp_(p.grad, 1 - MOMENTUM)
        ahead = gather_full(p.grad.lerp(momentum, MOMENTUM)).flatten(1)
        step = orthogonalize(ahead).mul_(RMS * max(ahead.shape) ** 0.5)
        p.mul_(1 - lr * decay).sub_(distribute_like(step.view(p.shape), p), alpha=lr)
