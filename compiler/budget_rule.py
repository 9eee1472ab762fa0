"""The budget of a spec: what weights may take, and what each may become."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from .. import specs
from ..runtime.errors import RequestError
from ..runtime.reading import RESOLVE, read_text
from .budget import Budget
from .hints import did_you_mean
from .messages import reject
from .plain import describe
from .rules import DENSE, Frozen, listed

Measure = Literal["gaussian", "effective_parameters", "weight_error", "output_error", "relative_output_error"]


def _limits(value: tuple[str | int, ...]) -> tuple[str | int, ...]:
    try:
        Budget.of(value)
    except RequestError as error:
        raise ValueError(f"{error.message}; {error.advice}") from None
    return value


def _known(value: str, info: ValidationInfo) -> str:
    """A name or a text that means something; files are read when they are needed."""
    if value == DENSE or value.endswith((".yaml", ".yml")):
        return value
    if any(mark in value for mark in ("(", ">>", "@", " + ")):
        read_text(value, (info.context or {}).get(RESOLVE, lambda name: None))
    elif specs.resolve(value) is None:
        hint = did_you_mean(value, specs.names(), "`rhoc specs ls` lists the shipped specs")
        reject(f"no spec is called {describe(value)}", hint)
    return value


CandidateName = Annotated[str, AfterValidator(_known)]


class BudgetRule(Frozen):
    """Which representation each weight gets, within a budget.

    `limit` is what the weights may take: `12 MB` or `1.5 GiB` (of the whole model), `3.5 bits` (on average,
    of the weights that rules represent), or several. `candidates` are names of specs, whose first rule says
    what a weight becomes; `dense` is one. `measure` is what the choice is best in: `gaussian` (errors on
    Gaussian numbers times the power of each weight), `weight_error` of the real weights, `output_error` on
    calibration data (where large outputs count for more) or `relative_output_error` (where each layer counts
    alike), or `effective_parameters` by the published law. `latency` is a file of measured times, YAML or CSV
    (candidate, shape, milliseconds), for a limit such as `2 ms`; its path is from where the command runs.
    """

    limit: Annotated[tuple[str | int, ...], BeforeValidator(listed), AfterValidator(_limits)]
    candidates: Annotated[tuple[CandidateName, ...], BeforeValidator(listed), Field(min_length=1)]
    measure: Measure = "gaussian"
    latency: str | None = None

    @model_validator(mode="after")
    def _timed(self) -> BudgetRule:
        if (Budget.of(self.limit).milliseconds is None) != (self.latency is None):
            reject("a limit in milliseconds and a table of latencies go together", "give both, or neither")
        return self
