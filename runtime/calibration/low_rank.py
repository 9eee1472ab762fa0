"""Low-rank correction: factors for what other terms lose, chosen by what the inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..code import Code
from ..errors import RequestError
from ..representation import Representation
from ..stage import Fields, Stage
from ..stages import Product, Sparsify, Sum
from ..stages.factors import best_factors, fitted_left, fitted_right
from ..stages.parts import code_fields, nothing
from ..stages.precision import wide
from .fitter import Fitter, opened
from .gptq import Gptq, check_damping
from .hessian import cholesky, damped
from .leading import Inputs, Leading, leading_stages, output_error
from .round_to_nearest import RoundToNearest
from .sparse_gptq import SparseGptq


@dataclass(frozen=True)
class LowRank(Fitter):
    """A sum of terms, one or more of them a `product`, each fitted to what the others leave.

    With C C^T = H, a product's factors come from the singular values of R C: the best approximation of what
    is left, R, as the inputs see it (EoRA, 2410.21271; LQER, 2402.02446, has a diagonal H). The
    chain is any rotations and scales of columns, and then a sum with a product, or a product alone. Factors
    with chains of their own are fitted to each other as often as `rounds` of the product says.

    `then` is how terms without a product are fitted; `gptq` is `sparse_gptq` for those that are sparse.
    `rounds` is how often all terms are fitted once more, each to what the others leave; the best is kept.
    `damping` is added to the diagonal of the Hessian, as a share of its mean.
    """

    then: Literal["gptq", "round_to_nearest"] = "gptq"
    rounds: int = 1
    damping: float = 0.01
    kind: Literal["low_rank"] = "low_rank"

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if not 0 <= self.rounds <= 100:
            raise ValueError(f"rounds must be between 0 and 100, got {self.rounds}")

    def check(self, representation: Representation) -> None:
        rest = _after_leading(representation)
        if len(rest) == 1 and isinstance(rest[0], Product):
            return
        terms = rest[0].terms if len(rest) == 1 and isinstance(rest[0], Sum) else ()
        if not any(_has_product(term) for term in terms):
            raise ValueError(
                f"low_rank fits a product, and {representation} has none; add one, such as `+ product(16)`"
            )
        for term in terms:
            self._for(term).check(term)

    def rest(self, leading: Leading) -> tuple[Tensor, Sequence[Fields]]:
        (stage,) = leading.rest
        if len(leading.inputs.hessian) > 1:
            raise RequestError(
                "a product's factors are shared by all matrices of a weight, and these have different inputs",
                advice="give one Gram matrix for all of them",
            )
        if isinstance(stage, Product):
            fields = self._factors(stage, leading.carry, leading.inputs)
        else:
            assert isinstance(stage, Sum)  # `check` was asked
            codes = self._terms(stage, leading.carry, leading.inputs)
            fields = {n: t for i, code in enumerate(codes) for n, t in code_fields(str(i), code).items()}
        return nothing(leading.carry), (fields,)

    def _terms(self, stage: Sum, carry: Tensor, inputs: Inputs) -> list[Code]:
        """The codes of all terms, of the best round."""
        numbers = carry.to(wide(carry.dtype))
        values = [torch.zeros_like(numbers) for _ in stage.terms]
        codes: dict[int, Code] = {}
        best, least = codes, torch.inf
        for _ in range(1 + self.rounds):
            for position, term in enumerate(stage.terms):
                left = numbers - sum(v for i, v in enumerate(values) if i != position)
                code = self._for(term).encode(left.to(carry.dtype), term, inputs)
                codes = {**codes, position: code}
                values[position] = term.restore(code).to(numbers.dtype)
            error = output_error(numbers - sum(values), inputs)
            if error < least:
                best, least = codes, error
        return [best[position] for position in range(len(stage.terms))]

    def _for(self, term: Representation) -> Fitter:
        """What fits a term."""
        rest = _after_leading(term)
        if _has_product(term):
            return self
        if not rest or self.then == "round_to_nearest":
            return RoundToNearest()
        return SparseGptq(self.damping) if isinstance(rest[0], Sparsify) else Gptq(self.damping)

    def _factors(self, stage: Product, carry: Tensor, inputs: Inputs) -> Fields:
        """The fields of both factors, of the best round."""
        rows, columns = prod(carry.shape[:-1]), carry.shape[-1]
        rank = min(stage.rank or columns, rows, columns)
        root = cholesky(damped(inputs.hessian[0], self.damping))
        matrix = carry.reshape(rows, columns).double()
        seen = matrix @ root
        left, right = (factor.double() for factor in best_factors(seen.to(wide(carry.dtype)), rank))
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
        fields, left = _encoded("left", stage.left, left, carry.dtype)
        other, right = _encoded("right", stage.right, right, carry.dtype)
        best, least = fields | other, (seen - left @ (right @ root)).square().sum()
        for _ in range(stage.rounds):
            _, right = _encoded("right", stage.right, fitted_right(left, matrix), carry.dtype)
            fields, left = _encoded("left", stage.left, fitted_left(right @ root, seen), carry.dtype)
            other, right = _encoded("right", stage.right, fitted_right(left, matrix), carry.dtype)
            error = (seen - left @ (right @ root)).square().sum()
            if error < least:
                best, least = fields | other, error
        return best


def _after_leading(representation: Representation) -> tuple[Stage, ...]:
    stages = opened(representation)
    return stages[len(leading_stages(stages)) :]


def _has_product(representation: Representation) -> bool:
    """Whether what follows the leading stages is a product, or a sum with one."""
    rest = _after_leading(representation)
    if len(rest) != 1:
        return False
    if isinstance(rest[0], Sum):
        return any(_has_product(term) for term in rest[0].terms)
    return isinstance(rest[0], Product)


def _encoded(
    side: str, representation: Representation, factor: Tensor, dtype: torch.dtype
) -> tuple[Fields, Tensor]:
    """The fields of a factor, and what they decode to."""
    code = representation.encode(factor.to(dtype))
    return code_fields(side, code), representation.restore(code).double()
