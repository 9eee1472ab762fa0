"""Weights that are Gaussian in training, or fixed in rounds, with what they keep beside them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from .estimators import Estimator
from .estimators.fix_values import FIXED, ROUNDS, beside_names
from .estimators.gaussian_weights import DEVIATION, gaussian_of
from .gaussian_ops import GAUSSIAN
from .projection import Project
from .seeds import fresh_seed


@final
class UncertainProject(Project):
    """The projection of such a weight; see `estimators.gaussian_weights` and `estimators.fix_values`.

    It is called with the weight and with what `beside_names` names. In training it gives the weight, with
    noise where it is Gaussian; otherwise the numbers that are fixed, exactly, and the others projected.
    """

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """What a weight is seen as: same shape and dtype."""
        self._check_stepped()
        given = dict(zip(beside_names(self.estimators), beside, strict=True))
        if self.training and torch.is_grad_enabled():
            gaussian = gaussian_of(self.estimators)
            if gaussian is None:
                return x
            drawn: Tensor = GAUSSIAN(
                x, given[DEVIATION], fresh_seed(), gaussian.floor, gaussian.ceiling, gaussian.pull_rate
            )
            return drawn
        return self.settled(x, given.get(FIXED))

    def settled(self, x: Tensor, fixed: Tensor | None) -> Tensor:
        """The weight with what is not `fixed` projected."""
        projected = self.arrangement.restore(self._project(self.arrangement.matrix(x)), tuple(x.shape))
        return projected if fixed is None else torch.where(fixed, x, projected)


def first_beside(estimators: tuple[Estimator, ...], weight: nn.Parameter) -> dict[str, Tensor]:
    """What a weight keeps beside it at first, by what follows its name and `_`."""
    names = beside_names(estimators)
    found: dict[str, Tensor] = {}
    gaussian = gaussian_of(estimators)
    if gaussian is not None:
        found[DEVIATION] = nn.Parameter(gaussian.first(weight), weight.requires_grad)
    if FIXED in names:
        found[FIXED] = torch.zeros_like(weight, dtype=torch.bool)
        found[ROUNDS] = torch.zeros((), dtype=torch.uint8, device=weight.device)
    return {name: found[name] for name in names}
