"""Muon, the optimizer of the base model's matrices, all matrices of a shape at a time."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration (kellerjordan.github.io/posts/muon)."""
ITERATIONS = 5
EPSILON = 1e-7


class Muon(Optimizer):
    """Momentum (Nesterov), made orthogonal: what torch.optim.Muon does to each matrix by itself.

    For matrices as small as these its many products cost more to start than to do.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(state["momentum"], momentum)
                by_shape.setdefault(parameter.shape, []).append((parameter, update))
            for (rows, columns), members in by_shape.items():
                updates = orthogonal([update for _, update in members])
                adjusted = lr * math.sqrt(max(1, rows / columns))
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - lr * group["weight_decay"])
                    parameter.add_(update, alpha=-adjusted)


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """The nearly orthogonal matrices next to these, which are all (R, C), in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices[0].shape[0] > matrices[0].shape[1]
    wide = [m.bfloat16().T if tall else m.bfloat16() for m in matrices]
    norms = torch.stack([m.norm().clamp(min=EPSILON) for m in wide])
    x_NRC = torch.stack(wide).div_(norms[:, None, None])
    for _ in range(ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        update_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, update_NRR, x_NRC, beta=a)
    return list(x_NRC.mT if tall else x_NRC)
