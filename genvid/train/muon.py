"""Muon (Jordan et al. 2024) with batched orthogonalisation of matrices of one shape, for convolutions too."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from genvid.train.sharding import gather, local_part, split

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Published coefficients of the quintic iteration, steepest at zero: singular values end between 0.7 and 1.2."""
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Same updates as torch.optim.Muon with `match_rms_adamw`, in a tenth of the kernels.

    torch.optim.Muon launches some 20 kernels for every matrix, which on a small model costs more than forward and
    backward pass. It also refuses convolution kernels, which are (outputs, inputs x kernel size) matrices here.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, unless `found_inf` is 1, as in torch's fused optimizers.

        Matrices that FSDP2 shards are gathered: every process orthogonalises all of one and keeps its part.
        """
        held = [local_part(self._average(p)) for p in parameters]
        gradients = torch.stack([local_part(p.grad) for p in parameters if p.grad is not None])
        averages = torch.stack(held)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            # A gradient that is the average already leaves it as it is.
            gradients = torch.where(found_inf.bool(), averages, gradients)
        averages.lerp_(gradients, 1 - group["momentum"])
        torch._foreach_copy_(held, list(averages))
        updates = zip(gradients.lerp(averages, group["momentum"]), parameters, strict=True)
        matrices = torch.stack([gather(part, p).flatten(1) for part, p in updates])
        orthogonal = orthogonalise(matrices).to(averages.dtype)
        lr, size = group["lr"], max(matrices.shape[1:])
        decay: float | Tensor = lr * group["weight_decay"]
        if found_inf is not None:
            orthogonal, decay = orthogonal * (1 - found_inf), decay * (1 - found_inf)
        weights = [local_part(p) for p in parameters]
        torch._foreach_mul_(weights, 1 - decay)
        steps = [split(matrix.view(p.shape), p) for matrix, p in zip(orthogonal, parameters, strict=True)]
        torch._foreach_add_(weights, steps, alpha=-lr * 0.2 * math.sqrt(size))

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum_buffer"]
        return average


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> approximately U V^T of the singular value decomposition of each, in bfloat16.

    Newton-Schulz iterations on the smaller side's Gram matrix.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.baddbmm(x, gram, x, beta=first)
    return x.mT if tall else x
