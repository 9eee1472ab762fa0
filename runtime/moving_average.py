"""An exponential moving average of the weights of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from .estimators.fix_values import FIXED


@final
class MovingAverage:
    """e <- decay * e + (1 - decay) * w after every step, from e = w at the start; of trained parameters only.

    Averages are kept in float32, or the parameter's own dtype where that is wider. Buffers are not averaged,
    and numbers that a rule has fixed are what they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._model = decay, model
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._trained.items()
        }
        self._note_unknown()

    def _note_unknown(self) -> None:
        """Averages that are NaN wait for a first value: learned steps of inputs have none before training."""
        self._unknown = {name for name, average in self._averages.items() if bool(average.isnan().any())}

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights as they are now."""
        for name, average in self._averages.items():
            average.mul_(self.decay).add_(self._trained[name], alpha=1 - self.decay)
        for name, fixed in self._model.named_buffers(remove_duplicate=False):
            weight = name.removesuffix(f"_{FIXED}")
            if weight != name and weight in self._averages:
                average = self._averages[weight]
                average.copy_(torch.where(fixed, self._trained[weight], average))
        for name in sorted(self._unknown):
            self._averages[name].copy_(self._trained[name])
            if not bool(self._trained[name].isnan().any()):
                self._unknown.remove(name)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights inside, and its own again outside, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        self.give()
        try:
            yield
        finally:
            self._put(own)

    def give(self) -> None:
        """Make the average the model's weights."""
        self._put(self._averages)

    def state(self) -> dict[str, Tensor]:
        """The averages, by name of the parameter."""
        return dict(self._averages)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from averages."""
        for name, average in self._averages.items():
            average.copy_(state[name])
        self._note_unknown()

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])
