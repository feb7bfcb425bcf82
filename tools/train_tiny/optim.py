"""The optimiser that trains the bundled model: Muon for matrices, AdamW for the rest.

torch.optim.Muon takes two-dimensional parameters only; the VAE's are convolution kernels, so the
few lines that orthogonalise an update are here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon: an optimizer for
# hidden layers in neural networks"): steep at zero, so five iterations bring every singular value
# to about one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Update size of an orthogonal matrix matched to AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).
ADAMW_RMS = 0.2


def orthogonalise(update: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each ``update`` ``[... m n]``, approximately."""
    a, b, c = NEWTON_SCHULZ
    x = update / (update.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if transposed := x.shape[-2] > x.shape[-1]:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov, orthogonalised update; kernels are flattened to ``[out, rest]``."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # Matrices of one shape go through the iteration together: hundreds of small products
            # cost more in calls than in arithmetic.
            shapes: defaultdict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                shapes[nesterov.shape].append((p, nesterov))
            for shape, members in shapes.items():
                scale = ADAMW_RMS * max(shape) ** 0.5
                matrices = orthogonalise(torch.stack([update for _, update in members]))
                for (p, _), matrix in zip(members, matrices, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(matrix.view_as(p), alpha=-group["lr"] * scale)


class MuonWithAdamW:
    """Both optimisers as one: weights of two and more dimensions to Muon, the rest to AdamW.

    Args:
        model: all its trainable parameters are taken.
        lr: peak learning rate of both (Muon's updates are scaled to AdamW's size).
        adamw: parts of names of parameters that AdamW takes although they are matrices
            (embeddings, tables and output layers, as the method's authors advise).
    """

    def __init__(
        self, model: nn.Module, lr: float, weight_decay: float = 0.0, adamw: tuple[str, ...] = ()
    ) -> None:
        self.lr = lr
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            muon = parameter.ndim >= 2 and not any(part in name for part in adamw)
            (matrices if muon else rest).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, factor: float) -> None:
        """One update at ``factor`` times the peak learning rate; clears the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def warm_then_linear(step: int, total: int, warm: int = 50) -> float:
    """Learning-rate factor: up over ``warm`` steps, then straight down to zero at ``total``."""
    return min((step + 1) / warm, max(0.0, (total - step) / total))


class WeightAverage:
    """Exponential moving average of a model's weights; ``copy_to`` puts it into a model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        # A short memory at first, so that the start is forgotten.
        decay = min(self.decay, self.steps / (self.steps + 10))
        for key, value in model.state_dict().items():
            self.shadow[key].lerp_(value.to(self.shadow[key].dtype), 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.shadow)
