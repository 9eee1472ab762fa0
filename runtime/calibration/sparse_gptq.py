"""SparseGPT: what to keep, what that becomes, and what it is rounded to, with the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..representation import Representation
from ..stage import Fields
from ..stages import Quantize, Sparsify
from ..stages.quantize import Steps
from .columns import GridColumns, transposed
from .fitter import Fitter, opened
from .gptq import check_damping, factor_of
from .leading import Leading, leading_stages
from .pruned_columns import PrunedColumns
from .sweep import sweep


@dataclass(frozen=True)
class SparseGptq(Fitter):
    """Joint pruning and rounding with second-order corrections (SparseGPT, 2301.00774).

    The chain is any rotations and scales, `sparsify`, and `quantize` or nothing. A first sweep over the
    columns chooses what stays and makes up for what goes. Where a grid follows, its scales are those of the
    weights that stayed, and a second sweep makes up for the zeros and the rounding together.

    `damping` is added to the diagonal of the Hessian, as a share of its mean.
    """

    damping: float = 0.01
    kind: Literal["sparse_gptq"] = "sparse_gptq"

    def __post_init__(self) -> None:
        check_damping(self.damping)

    def check(self, representation: Representation) -> None:
        stages = opened(representation)
        rest = stages[len(leading_stages(stages)) :]
        if not rest or not isinstance(rest[0], Sparsify):
            raise ValueError(
                f"sparse_gptq chooses what to keep, and {representation} keeps everything; use gptq"
            )
        others = [stage for stage in rest[1:] if not isinstance(stage, Quantize)]
        if others:
            raise ValueError(
                f"sparse_gptq rounds what it keeps to a grid, and {representation} has {others[0].kind} "
                "there; use round_to_nearest"
            )

    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        stage, *grids = leading.rest
        assert isinstance(stage, Sparsify)  # `check` was asked
        factor = factor_of(leading, self.damping)
        numbers = leading.carry.to(factor.dtype)
        pruned = PrunedColumns(stage, numbers, factor, leading.rows)
        sweep(transposed(numbers), factor, pruned)
        units, dtype = pruned.units(), leading.carry.dtype
        carry, places = stage.encode_with(pruned.weights().to(dtype), units)
        if not grids:
            return carry, (places,)
        (grid,) = grids
        assert isinstance(grid, Quantize)
        _, fields = grid.encode(carry)
        steps = grid.steps(fields, tuple(carry.shape))
        columns = GridColumns(grid, numbers, dtype, _scattered(steps, carry, stage, places), pruned.kept())
        sweep(transposed(numbers), factor, columns)
        return stage.encode_with(columns.codes(), units)[0], (places, fields)


def _scattered(steps: Steps, carry: Tensor, stage: Sparsify, places: Fields) -> Steps:
    """Steps of what stayed at their places in the weight."""
    scale, zero = steps
    scale = stage.decode(scale.expand(carry.shape), places)
    return Steps(scale, None if zero is None else stage.decode(zero.expand(carry.shape), places))
