"""What a law is: a formula with named, bounded parameters, under stated conventions.

A law predicts the loss of a run from its size N, its tokens D, what it was represented in, and further
columns. Its text is all there is to it: the fit finds by itself which parameters enter linearly and
searches the others, with exact derivatives (`terms.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf, isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .formula import Name, Node, evaluate, names_in, parse, substitute
from .runs import UNIT_OF_PARAMS, Array

Integers = NDArray[np.intp]
Number: TypeAlias = float | Array
Features: TypeAlias = Mapping[str, float | str]

FREE = "free"  # a multiplier with one value per representation


@dataclass(frozen=True)
class Parameter:
    """A named parameter of a law with its bounds, what it means and its unit.

    From 0 to infinity it is a coefficient, and enters the formula as a factor; otherwise it is searched
    between its bounds. column: the column of which every entry has a value of its own, `k[representation]`;
    baseline: the value that the law's baseline has there, None when it is fitted like the others.
    """

    name: str
    low: float = 0.0
    high: float = inf
    meaning: str = ""
    unit: str = ""
    column: str = ""
    baseline: float | None = None

    @property
    def is_coefficient(self) -> bool:
        """Whether it is solved for, not searched."""
        return self.low == 0.0 and self.high == inf


@dataclass(frozen=True)
class Column:
    """A column that a law reads beside params, tokens, loss and representation; without default it is
    required.

    A default of text makes it a column of names. Numbers are at least `low` and below `high`. dense: what it
    is for dense numbers, where that is not the default.
    """

    name: str
    default: float | str | None = None
    meaning: str = ""
    low: float = -inf
    high: float = inf
    dense: float | None = None

    def read(self, text: float | str) -> float | str:
        """A value of it as a question gives it. Raises RequestError for one that it cannot have."""
        if isinstance(self.default, str):
            return str(text)
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value >= self.low and (value < self.high or self.high == inf)):
            ends = ((" from", self.low), (" to below", self.high))
            within = "".join(f"{word} {end:g}" for word, end in ends if isfinite(end))
            raise RequestError(f"{self.name} is {text!r}, not a number{within}")
        return value


_ALWAYS, _COLUMN = ("name", "default"), asdict(Column(""))
RHO = Parameter(
    "rho", 1e-4, 1e2, "dense parameters that one represented parameter is worth", "", "representation", 1.0
)
RHO_DATA = Parameter(
    "rho_D", 1e-4, 1e2, "tokens of dense training that one token is worth", "", "backward", 1.0
)
BACKWARD = Column("backward", "dense", "what gradients were represented in")


@dataclass(frozen=True)
class Law:
    """A declared formula for the loss of a run, in nats per token.

    formula: as text, `L = E + A/(N*rho)^alpha + B/D^beta`; source: paper and equation; rho: what multiplies
    N, as a formula, or "free" for one value per representation, or nothing; rho_data: the same for D, by the
    column `backward`; derived: further reported numbers as formulas of the parameters; baseline: the
    representation whose multipliers are 1; unit_of_params, unit_of_tokens, unit_of_loss: conventions of the
    source. To add one: a file in `forms/` and a line in its tuple, or a YAML file of these fields.

    Raises RequestError, naming the law, for a formula that does not hold together.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    rho: str = ""
    rho_data: str = ""
    columns: tuple[Column, ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    baseline: str = "dense"
    unit_of_params: str = UNIT_OF_PARAMS
    unit_of_tokens: str = "training tokens"
    unit_of_loss: str = "nats per token"

    def __post_init__(self) -> None:
        known = {"N", "D", *(p.name for p in self.parameters), *(c.name for c in self.columns)}
        known |= ({"rho"} if self.rho else set()) | ({"rho_D"} if self.rho_data else set())
        texts = [self.formula, *([self.rho] if self.rho not in ("", FREE) else [])]
        used = [name for text in texts for name in names_in(parse(text))]
        for name in used:
            if name.name not in known:
                self._refuse(f"{name.name!r} is neither N, D, rho, a parameter nor a column", "declare it")
            if name.column and name.column not in self._categories:
                self._refuse(f"{name.column!r} is no column of names", "give it a default of text")
        for parameter in self.parameters:
            self._check(parameter, {name.name for name in used})

    @property
    def conventions(self) -> Mapping[str, str | bool]:
        """What a saved fit says beside the law's name: the unit of rho, where rho is free."""
        return {"baseline": self.baseline} if FREE in (self.rho, self.rho_data) or self._indexed else {}

    @property
    def prices_features(self) -> bool:
        """Whether rho follows from columns, so that representations without runs have one too."""
        return self.rho not in ("", FREE)

    @property
    def tells_formats(self) -> bool:
        """Whether loss depends on anything beside N and D."""
        return bool(self.rho or self.columns or any(p.column for p in self.parameters))

    @cached_property
    def tree(self) -> Node:
        """The formula with rho written out."""
        written: dict[str, Node] = {}
        if self.rho:
            written["rho"] = Name("rho", "representation") if self.rho == FREE else parse(self.rho)
        if self.rho_data:
            written["rho_D"] = Name("rho_D", "backward")
        return substitute(parse(self.formula), written)

    @cached_property
    def every_parameter(self) -> tuple[Parameter, ...]:
        """The parameters and the free multipliers."""
        free = [p for p, kind in ((RHO, self.rho), (RHO_DATA, self.rho_data)) if kind == FREE]
        return (*self.parameters, *free)

    @cached_property
    def reads(self) -> tuple[Column, ...]:
        """The columns that the loss depends on besides through rho."""
        used = {name.name for name in names_in(parse(self.formula))}
        used |= {BACKWARD.name} if "rho_D" in used else set()
        return tuple(column for column in self.every_column if column.name in used)

    @property
    def dense_features(self) -> dict[str, float | str]:
        """The columns of dense numbers."""
        found = {c.name: c.default if c.dense is None else c.dense for c in self.every_column}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def every_column(self) -> tuple[Column, ...]:
        """The columns, that of backward formats among them where data has a multiplier."""
        return (*self.columns, *((BACKWARD,) if self.rho_data else ()))

    def loss(
        self,
        parameters: Mapping[str, Number],
        params: Number,
        tokens: Number,
        rho: Number = 1.0,
        features: Features | None = None,
    ) -> Number:
        """Predicted loss in nats per token at N, D and multiplier rho; all may be arrays that broadcast.

        features: the law's columns by name, where they are not at their defaults; `rho_D` itself may be
        among them. Raises RequestError when a column without default is missing.
        """
        given: dict[str, Any] = {"N": params, "D": tokens, "rho": rho}
        values = given | self._features(features or {}) | dict(parameters)
        if self.rho_data and "rho_D" not in values:
            values["rho_D"] = self._entry(Name("rho_D", BACKWARD.name), values)
        return np.asarray(evaluate(parse(self.formula), lambda name: self._value(name, values)))[()]

    def price(self, parameters: Mapping[str, Number], features: Features) -> Number:
        """rho of a representation that is known by its features alone (`gmse_weight`, `weight_bits`, ...).

        Raises RequestError when the law prices only the representations it was fitted to.
        """
        if not self.prices_features:
            if self.rho == "" and not any(value for value in features.values()):
                return 1.0
            self._refuse_to_price()
        values = self._features(features) | dict(parameters)
        return np.asarray(evaluate(parse(self.rho), lambda name: self._value(name, values)))[()]

    def with_conventions(self, conventions: Mapping[str, str | bool]) -> Law:
        """This law under other conventions. Raises RequestError for one it does not have."""
        for key in conventions:
            if key not in self.conventions:
                raise RequestError(
                    f"the {self.name} law has no convention {key!r}",
                    advice=f"it has: {', '.join(sorted(self.conventions)) or 'none'}",
                )
        return replace(self, baseline=str(conventions.get("baseline", self.baseline)))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON: what a YAML file of it holds."""
        document = asdict(self)
        document["parameters"] = [
            {k: v for k, v in asdict(p).items() if v != getattr(Parameter(""), k)} for p in self.parameters
        ]
        document["columns"] = [
            {k: str(v) if v == inf else v for k, v in asdict(c).items() if k in _ALWAYS or v != _COLUMN[k]}
            for c in self.columns
        ]
        return document

    def _features(self, features: Features) -> dict[str, Any]:
        defaults = {c.name: c.default for c in self.every_column if c.default is not None}
        return defaults | {"representation": self.baseline} | dict(features)

    def _value(self, name: Name, values: Mapping[str, Any]) -> Any:
        """What a name in a formula stands for."""
        if name.column:
            return self._entry(name, values)
        if name.name not in values:
            raise RequestError(f"the {self.name} law needs {name.name}", advice="give it as a column")
        return values[name.name]

    def _entry(self, name: Name, values: Mapping[str, Any]) -> Any:
        """The value of `k[column]` for one entry of the column."""
        entry = values.get(name.column)
        key = f"{name.name}[{entry}]"
        if key in values:
            return values[key]
        parameter = next(p for p in self.every_parameter if p.name == name.name)
        if entry == self.baseline and parameter.baseline is not None:
            return parameter.baseline
        raise RequestError(f"the {self.name} law has no {key}", advice="ask for one that has runs in the fit")

    @property
    def _indexed(self) -> bool:
        return any(p.baseline is not None for p in self.parameters)

    @property
    def _categories(self) -> set[str]:
        return {"representation"} | {c.name for c in self.every_column if isinstance(c.default, str)}

    def _check(self, parameter: Parameter, used: set[str]) -> None:
        if parameter.name not in used:
            self._refuse(f"the parameter {parameter.name!r} is not in the formula", "take it out")
        ordered = parameter.low < parameter.high and isfinite(parameter.low)
        if not ordered or not (parameter.is_coefficient or isfinite(parameter.high)):
            self._refuse(
                f"{parameter.name} runs from {parameter.low:g} to {parameter.high:g}",
                "a coefficient runs from 0 to infinity; what is searched needs two finite bounds",
            )

    def _refuse(self, message: str, advice: str) -> None:
        raise RequestError(message, where=f"law {self.name}", advice=advice)

    def _refuse_to_price(self) -> None:
        if self.rho == FREE:
            raise RequestError(
                f"the {self.name} law prices only the representations it was fitted to",
                advice="add runs of it, compose it from parts that have runs, or fit the representation law",
            )
        raise RequestError(
            f"the {self.name} law has no multipliers",
            advice="fit the decoupled or the representation law to these runs",
        )


def law_from_document(document: Mapping[str, Any], where: str) -> Law:
    """A law from the fields of a YAML or JSON document. Raises RequestError, at `where`, for a malformed
    one.
    """
    try:
        fields = dict(document)
        parameters = tuple(Parameter(**_numbers(entry)) for entry in fields.pop("parameters"))
        columns = tuple(Column(**_column(entry)) for entry in fields.pop("columns", ()))
        return Law(parameters=parameters, columns=columns, **fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            f"not a law ({type(error).__name__}: {error})",
            where=where,
            advice="it has name, formula, source and a list of parameters with name, low, high, meaning",
        ) from error


def _column(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON and our YAML have no infinity: it is written as text."""
    return {key: inf if value == "inf" else value for key, value in entry.items()}


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(value) if key in ("low", "high") else value for key, value in entry.items()}
