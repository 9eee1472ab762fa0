"""AWQ: scales of input channels that keep what large inputs are multiplied with from being rounded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..code import Code
from ..representation import Representation
from ..stage import Fields
from ..stages import Scale
from ..stages.precision import wide
from .fitter import Fitter, closed, inputs_of, opened
from .gptq import Gptq, check_damping
from .gram import Gram
from .leading import Inputs, Leading, leading_stages, led, output_error
from .round_to_nearest import RoundToNearest

_LEAST = 1e-4  # of the largest channel: what is never seen is not scaled to nothing


@dataclass(frozen=True)
class Awq(Fitter):
    """A scale for every input channel, x^a of the mean magnitude x of its inputs (AWQ, 2306.00978, 3.2).

    The exponent a is searched between 0 and 1 for the least output error of rounding to nearest. The scales
    are stored by a stage `scale` of columns in the chain; without one, the layer before has to absorb them:
    see `search_scale`.

    `grid` is the number of steps of the search.
    `then` is how the scaled weight is fitted in the end.
    `damping` is that of `gptq`.
    """

    grid: int = 20
    then: Literal["round_to_nearest", "gptq"] = "round_to_nearest"
    damping: float = 0.01
    kind: Literal["awq"] = "awq"

    def __post_init__(self) -> None:
        check_grid(self.grid)
        check_damping(self.damping)

    def check(self, representation: Representation) -> None:
        if _scale_of(representation) is None:
            raise ValueError(
                f"awq scales input channels, and {representation} has no stage that keeps such scales; "
                "put scale(columns) before its grid, or let equalize move them into the layer before"
            )
        self._last.check(representation)

    def encode(self, weight: Tensor, representation: Representation, inputs: Inputs) -> Code:
        position, stages = _scale_of(representation), opened(representation)
        assert position is not None  # `check` was asked
        plain, numbers = Representation(stages), weight.to(wide(weight.dtype))
        best, least = None, torch.inf
        for scale in candidates(led(stages[:position], weight, inputs).inputs, self.grid):
            leading = led(stages, weight, inputs, {position: scale.reciprocal()})
            code = closed(plain, weight, leading, *RoundToNearest().rest(leading))
            error = output_error(numbers - plain.restore(code).to(numbers.dtype), inputs)
            if error < least:
                best, least = leading, error
        assert best is not None  # finite numbers have finite errors
        return closed(representation, weight, best, *self.rest(best))

    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        return self._last.rest(leading)

    @property
    def _last(self) -> Fitter:
        return Gptq(damping=self.damping) if self.then == "gptq" else RoundToNearest()


def search_scale(
    weight: Tensor, representation: Representation, gram: Gram | Sequence[Gram], grid: int = 20
) -> Tensor:
    """s `[in]`, float64: W with its columns times s loses least output, where inputs are divided by s.

    The weight is `[..., out, in]`, rounded to nearest. s = 1 is among the candidates, so the error is never
    above that of no scale. Raises as `Fitter.fit` does.
    """
    check_grid(grid)
    representation.check(tuple(weight.shape))
    inputs = inputs_of(weight, gram)
    best, least = torch.ones_like(inputs.size), torch.inf
    with torch.no_grad():
        dense = weight.detach().to(wide(weight.dtype))
        for scale in candidates(inputs, grid):
            factors = scale.to(dense.dtype)
            decoded = representation.project((dense * factors).to(weight.dtype)).to(dense.dtype)
            error = output_error(dense - decoded / factors, inputs)
            if error < least:
                best, least = scale, error
    return best


def candidates(inputs: Inputs, grid: int) -> list[Tensor]:
    """x^a for a from 0 to 1 in so many steps, each brought to a largest times smallest of 1."""
    size = inputs.size / inputs.size.max().clamp_min(torch.finfo(torch.float64).tiny)
    size = size.clamp_min(_LEAST)
    powers = [size ** (step / grid) for step in range(grid + 1)]
    return [power / (power.max() * power.min()).sqrt() for power in powers]


def check_grid(grid: int) -> None:
    """Raise ValueError when there is nothing to search."""
    if not 1 <= grid <= 1000:
        raise ValueError(f"grid must be between 1 and 1000 steps, got {grid}; 20 is usual")


def _scale_of(representation: Representation) -> int | None:
    """Where in the opened chain the scales of columns are stored; None when nowhere."""
    for position, stage in enumerate(leading_stages(opened(representation))):
        if isinstance(stage, Scale) and stage.along == "columns":
            return position
    return None
