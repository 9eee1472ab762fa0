"""GPTQ: columns rounded in order, each error made up for by the columns that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..representation import Representation
from ..stage import Fields, Stage
from ..stages import Codebook, Quantize
from ..stages.precision import wide
from .columns import GridColumns, transposed
from .fitter import Fitter, opened
from .hessian import damped, inverse_factor
from .leading import Leading, leading_stages
from .sweep import sweep
from .vector_columns import VectorColumns


@dataclass(frozen=True)
class Gptq(Fitter):
    """Greedy rounding with second-order corrections (GPTQ, 2210.17323), for any grid or codebook.

    Columns are rounded one after the other (or as many at a time as a vector of a codebook has), and the
    output error of each is made up for by the weights that are not rounded yet. The chain is any rotations
    and scales, and then `quantize` or `codebook`. Scales of a group are measured when its first column is
    reached, from the weights as they are then; scales that are stored relative to each other (`scales`,
    NVFP4) and codebooks come from the weights as they were.

    `damping` is added to the diagonal of the Hessian, as a share of its mean.
    `act_order` takes columns with the largest inputs first. Groups then need `static_groups`.
    `static_groups` measures all scales before anything is rounded.
    """

    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    kind: Literal["gptq"] = "gptq"

    def __post_init__(self) -> None:
        check_damping(self.damping)

    def check(self, representation: Representation) -> None:
        stages = opened(representation)
        rest = stages[len(leading_stages(stages)) :]
        refusal = _refusal(rest)
        if refusal:
            raise ValueError(f"gptq fits one grid or codebook, and {representation} {refusal}")
        (stage,) = rest
        if not self.act_order:
            return
        if isinstance(stage, Codebook):
            raise ValueError(f"act_order takes columns out of order, and {stage} needs them; leave it out")
        grouped = isinstance(stage, Quantize) and stage.group_numbers is not None
        if grouped and not self.static_groups:
            raise ValueError(
                "act_order takes columns out of order, so scales of groups must be measured before; "
                "add static_groups: true"
            )

    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        (stage,) = leading.rest
        order = None
        if self.act_order:  # of equal ones the first
            diagonal = leading.inputs.hessian.diagonal(dim1=-2, dim2=-1).mean(0)
            order = diagonal.argsort(descending=True, stable=True)
        carry = leading.carry
        factor = factor_of(leading, self.damping, order)
        numbers = carry.to(factor.dtype)
        if isinstance(stage, Codebook):
            fields = stage.encode(carry)[1]
            vectors = VectorColumns(stage, numbers, fields, factor)
            sweep(transposed(numbers), factor, vectors)
            return vectors.codes(), (fields,)
        assert isinstance(stage, Quantize)  # `check` was asked
        if order is None and not self.static_groups and not stage.scales_meet:
            columns = GridColumns(stage, numbers, carry.dtype)
            sweep(transposed(numbers), factor, columns)
            return columns.codes(), (columns.fields(),)
        fields = stage.encode(carry)[1]
        columns = GridColumns(stage, numbers, carry.dtype, stage.steps(fields, tuple(carry.shape)))
        ordered = numbers if order is None else numbers[..., order]
        sweep(transposed(ordered), factor, columns, None if order is None else order.tolist())
        return columns.codes(), (fields,)


def check_damping(damping: float) -> None:
    """Raise ValueError when it is not a share of the Hessian's diagonal."""
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping must be 0 or more, got {damping}; 0.01 suits most layers")


def factor_of(leading: Leading, damping: float, order: Tensor | None = None) -> Tensor:
    """U `[b, in, in]` of the damped Hessian, channels in this order, in the precision of the numbers."""
    hessian = leading.inputs.hessian
    if order is not None:
        hessian = hessian[:, order][:, :, order]
    return inverse_factor(damped(hessian, damping)).to(wide(leading.carry.dtype))


def _refusal(rest: tuple[Stage, ...]) -> str:
    """Why these stages after the leading ones are not one grid or codebook; empty when they are."""
    if len(rest) == 1 and isinstance(rest[0], Quantize | Codebook):
        return ""
    if not rest:
        return "rounds nothing; use round_to_nearest"
    if rest[0].kind == "sparsify":
        return "is sparse; use sparse_gptq"
    if any(stage.kind in ("sum", "product") for stage in rest):
        return "has a product or a sum; use low_rank"
    return f"has {rest[0].kind} there; use round_to_nearest"
