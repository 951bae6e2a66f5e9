"""PyTorch's Adam, its step given the gradients directly: one fused call and little around it.

Its state is that of torch.optim.Adam, and so is what it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class DirectAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980), fused, of one group of parameters.

    It has no other arguments; for more, torch.optim.Adam itself will do as ``optimizer_class``.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    @torch.no_grad()
    def step_along(self, gradients: Sequence[Tensor | None]) -> None:
        """``step()`` with these gradients of the parameters, in their order; None: that one stays.

        A gradient must lie in memory as its parameter does.
        """
        (group,) = self.param_groups
        pairs = [
            (parameter, gradient)
            for parameter, gradient in zip(group["params"], gradients, strict=True)
            if gradient is not None
        ]
        states = [self.state[parameter] or self._start(parameter) for parameter, _ in pairs]
        # The fused step asks nothing: of other shapes it would write beyond their ends.
        assert all(
            parameter.shape == state["exp_avg"].shape == state["exp_avg_sq"].shape
            for (parameter, _), state in zip(pairs, states, strict=True)
        )
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            [parameter for parameter, _ in pairs],
            [gradient for _, gradient in pairs],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _start(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
