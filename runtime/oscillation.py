"""How many weights swing between two levels of their grid instead of settling (Nagel et al., 2203.11086)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import RequestError
from .gridded import Gridded, gridded

_MOMENTUM = 0.01  # of the moving average, as in the paper's experiments
_OFTEN = 0.005  # the frequency from which a weight counts as oscillating (Table 1 of the paper)


@final
class Oscillation:
    """Watches an optimiser's steps. A weight oscillates in a step when its code changes, in the direction
    opposite to its last change; f <- m o + (1 - m) f is the frequency (2203.11086, Eq. 5 and 6).

    Weights are those whose representation ends in a grid and has a code for every number: nothing sparse.
    Directions are counted in levels, so that any grid will do. Works in any loop:

        watch = Oscillation(model)
        watch.attach(optimizer)

    Raises RequestError when the model has no such weight.
    """

    def __init__(self, model: nn.Module, momentum: float = _MOMENTUM) -> None:
        self._momentum = momentum
        self._weights = [weight for weight in gridded(model) if weight.is_coded]
        if not self._weights:
            raise RequestError(
                "no weight of the model has a code of its own for every number, so none can oscillate",
                where="oscillation",
                advice="leave oscillation out, or quantise weights at the end of a chain without sparsity",
            )
        self._before: list[tuple[Gridded, Tensor]] = []
        self._direction: dict[str, Tensor] = {}  # of the last change: int8, -1, 0 before any, or 1
        self._frequency: dict[str, Tensor] = {}
        for weight in self._weights:
            shape = weight.matrix(weight.parameter).shape
            self._direction[weight.name] = weight.parameter.new_zeros(shape, dtype=torch.int8)
            self._frequency[weight.name] = weight.parameter.new_zeros(shape, dtype=torch.float32)

    def attach(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Watch every step of `optimizer` from now on, until both handles are removed.

        Attach after a `StepLimit`: what is watched is what was done.
        """
        return optimizer.register_step_pre_hook(self._remember), optimizer.register_step_post_hook(
            self._count
        )

    def share(self, often: float = _OFTEN) -> float:
        """The share of weights whose frequency is above `often`."""
        total = sum(frequency.numel() for frequency in self._frequency.values())
        return sum(int((f > often).sum()) for f in self._frequency.values()) / total

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        parts = {"direction": self._direction, "frequency": self._frequency}
        return {f"{part}:{name}": tensor for part, found in parts.items() for name, tensor in found.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        self._before = [(weight, weight.ranks()) for weight in self._weights]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _count(self, *_: Any) -> None:
        for weight, before in self._before:
            change = (weight.ranks() - before).sign().to(torch.int8)
            direction, frequency = self._direction[weight.name], self._frequency[weight.name]
            turned = (change * direction) < 0
            frequency.lerp_(turned.to(torch.float32), self._momentum)
            direction.copy_(torch.where(change != 0, change, direction))
        self._before = []
