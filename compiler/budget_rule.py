"""The budget of a spec: what weights may take, and what each may become."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..runtime.errors import RequestError
from .budget import Budget
from .rules import Frozen, listed

Measure = Literal["gaussian", "effective_parameters", "weight_error", "output_error"]


def _limits(value: tuple[str | int, ...]) -> tuple[str | int, ...]:
    try:
        Budget.of(value)
    except RequestError as error:
        raise ValueError(f"{error.message}; {error.advice}") from None
    return value


class BudgetRule(Frozen):
    """Which representation each weight gets, within a budget.

    `limit` is what the weights may take: `12 MB` or `1.5 GiB` (of the whole model), `3.5 bits` (on average,
    of the weights that rules represent), or several. `candidates` are names of specs, whose first rule says
    what a weight becomes; `dense` is one. `measure` is what the choice is best in: `gaussian` (errors on
    Gaussian numbers times the power of each weight), `weight_error` of the real weights, `output_error` on
    calibration data, or `effective_parameters` by the published law.
    """

    limit: Annotated[tuple[str | int, ...], BeforeValidator(listed), AfterValidator(_limits)]
    candidates: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
    measure: Measure = "gaussian"
