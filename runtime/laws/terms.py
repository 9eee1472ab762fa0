"""A law set up for a set of runs: coefficients, searched parameters, and log basis functions with
derivatives.

    loss of a run = sum over terms outside of sign * coefficient * exp(log basis)
                  + loss_scale * (the same sum over terms inside)^power

The log basis of a term depends on the searched parameters alone ("outer"), the coefficients enter linearly.
For fixed outer parameters the best coefficients are a non-negative least squares problem with one minimum,
so that only the outer parameters, two to eight of them, have to be searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .addends import Factor, Term, separate
from .base import RHO, Column, Integers, Law, Parameter
from .formula import Call, Name, Node, evaluate, names_in, parse
from .functions import log
from .jet import Jet
from .runs import Array, Runs

Flags = NDArray[np.bool_]

_SAME = 0.01  # relative spread of a column within one representation that passes as Monte Carlo noise
_ONE = "1"  # the coefficient of a term that has none


@dataclass(frozen=True)
class Basis:
    """Log basis functions at a batch of outer parameters, with exact derivatives.

    value: [batch, runs, terms], -inf where a run has no such term; gradient: [batch, runs, terms, outer];
    hessian: [batch, runs, terms, outer, outer], or None where it is zero.
    """

    value: Array
    gradient: Array
    hessian: Array | None


@dataclass(frozen=True)
class Reading:
    """Named values of a batch of solutions, each an array [batch]: parameters, and rho by representation."""

    parameters: dict[str, Array]
    rho: dict[str, Array]


class Terms:
    """A law on runs. Raises RequestError when the runs cannot support it.

    coefficients: their names; fixed: which of them are 1 and stay so; index: which one each term of each run
    uses, [runs, terms]; outer: searched parameters, under the names of their entries; signs, inside: per
    term.
    """

    def __init__(self, law: Law, runs: Runs) -> None:
        self.law, self.runs = law, runs
        self._columns = {c.name: self._column(c) for c in law.every_column}
        self._check_baseline()
        separated = separate(law)
        self._terms, self._power = separated.terms, separated.power
        self.signs: Array = np.array([term.sign for term in self._terms])
        self.inside: Flags = np.array([term.inside for term in self._terms])
        shared = {term.multiplier.name for term in self._terms if term.multiplier}
        self.outer = tuple(
            entry
            for p in law.every_parameter
            if not p.is_coefficient and p.name not in shared
            for entry in self._entries(p)
        )
        self._numbers = {parameter.name: i for i, parameter in enumerate(self.outer)}
        self._set_up_coefficients()
        self._check_within_representations()
        self._check_determined()

    @cached_property
    def loss_scale(self) -> float:
        """The geometric mean of the losses, so that what stands under a power is near 1 whatever the
        power.
        """
        return float(np.exp(np.log(self.runs.loss).mean()))

    @property
    def wrapped(self) -> bool:
        """Whether some terms stand under a power."""
        return self._power is not None

    def power(self, outer: Array) -> Jet:
        """The power at outer parameters [batch, outer], as a jet of arrays [batch, 1]."""
        assert self._power is not None
        found = evaluate(self._power, self._at(outer))
        return found if isinstance(found, Jet) else Jet(np.full((len(outer), 1), float(found)))

    def basis(self, outer: Array) -> Basis:
        """Log basis functions at outer parameters [batch, outer], centred over the runs.

        Each has mean zero over the runs: A/N^alpha with raw N has a coefficient of 1e2 to 1e9, and the
        problem a condition number of 1e11.
        """
        batch, runs, count = len(outer), len(self.runs), outer.shape[1]
        look_up = self._at(outer)
        value = np.zeros((batch, runs, len(self._terms)))
        gradient = np.zeros((*value.shape, count))
        hessian: Array | None = None
        for t, term in enumerate(self._terms):
            jet = self._log(t, look_up)
            absent, centre = self._absent[t], term.coefficient is not None or term.multiplier is not None
            value[:, :, t] = self._centred(jet.value, absent, centre)
            value[:, absent, t] = -np.inf
            for i, slope in jet.slopes.items():
                gradient[:, :, t, i] = self._centred(slope, absent, centre)
            for (i, j), curve in jet.curves.items():
                if hessian is None:
                    hessian = np.zeros((*gradient.shape, count))
                hessian[:, :, t, i, j] = hessian[:, :, t, j, i] = self._centred(curve, absent, centre)
        return Basis(value, gradient, hessian)

    def read(self, coefficients: Array, outer: Array) -> Reading:
        """Named parameters and multipliers of solutions [batch, coefficients] and [batch, outer]."""
        look_up = self._at(outer)
        found: dict[str, Array] = {
            p.name: outer[:, i] for p, i in zip(self.outer, range(outer.shape[1]), strict=True)
        }
        for t, term in enumerate(self._terms):
            mean = self._mean(self._log(t, look_up).value, self._absent[t], len(outer))
            if term.inside:
                mean = mean - np.log(self.loss_scale) / self.power(outer).value[:, 0]
            if term.multiplier is not None:
                found |= self._multipliers(t, term, coefficients, mean, look_up)
            elif term.coefficient is not None:
                found[term.coefficient.name] = coefficients[:, self._first[t]] * np.exp(-mean)
        for name, text in self.law.derived.items():
            with np.errstate(divide="ignore", over="ignore"):
                found[name] = np.asarray(evaluate(parse(text), lambda n: found[n.name]))
        return Reading(self._in_order(found), self._rho(found, len(outer)))

    def _in_order(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters as the law declares them, entries of one behind each other, derived ones last."""
        names = [
            name
            for p in self.law.every_parameter
            if p != RHO
            for name in found
            if name == p.name or name.startswith(f"{p.name}[")
        ]
        return {name: found[name] for name in (*names, *self.law.derived)}

    def _rho(self, found: Mapping[str, Array], batch: int) -> dict[str, Array]:
        if not self.law.rho:
            return {}
        first = {name: self.runs.representation.index(name) for name in self.runs.names}
        if not self.law.prices_features:
            order = (self.law.baseline, *(n for n in self.runs.names if n != self.law.baseline))
            return {name: found.get(f"rho[{name}]", np.ones(batch)) for name in order}
        return {
            name: np.broadcast_to(
                np.asarray(self.law.price(found, {c: column[row] for c, column in self._columns.items()})),
                batch,
            )
            for name, row in first.items()
        }

    def _multipliers(
        self, t: int, term: Term, coefficients: Array, mean: Array, look_up: Any
    ) -> dict[str, Array]:
        """The coefficient of the baseline, and every entry's ratio to it, undone from its exponent."""
        assert term.multiplier is not None
        name, entries = term.multiplier.name, self._levels(term.multiplier.column)
        own = coefficients[:, self._first[t] : self._first[t] + len(entries)]
        if term.coefficient is not None and term.coefficient.name == name:  # k[column], no ratio
            scaled = own * np.exp(-mean)[:, None]
            return {f"{name}[{entry}]": scaled[:, i] for i, entry in enumerate(entries)}
        exponent = evaluate(term.exponent, look_up)
        exponent = exponent.value if isinstance(exponent, Jet) else np.full((len(own), 1), float(exponent))
        base = own[:, :1] if term.coefficient is not None else np.exp(mean)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(own / base) / exponent
        logs = np.where(np.isnan(logs), 0.0, logs)  # neither has the term: nothing tells them apart
        values = np.exp(np.clip(logs, np.log(RHO.low), np.log(RHO.high)))
        shown = entries if name == RHO.name or len(entries) > 1 else ()
        found = {f"{name}[{entry}]": values[:, i] for i, entry in enumerate(shown)}
        if term.coefficient is not None:
            found[term.coefficient.name] = own[:, 0] * np.exp(-mean)
        return found

    def _log(self, t: int, look_up: Any) -> Jet:
        """Log basis of a term, broadcastable to [batch, runs]."""
        total: Any = Jet(np.zeros((1, 1)))
        with np.errstate(invalid="ignore"):  # in runs without the term, which `basis` blanks
            for base, exponent in self._terms[t].factors:
                total = total + self._log_base(base, look_up) * evaluate(exponent, look_up)
        return total if isinstance(total, Jet) else Jet(np.asarray(total))

    def _log_base(self, base: Node, look_up: Any) -> Any:
        if base in self._log_constants:
            return self._log_constants[base]
        if isinstance(base, Call) and base.function == "exp":
            return evaluate(base.arguments[0], look_up)
        return log(evaluate(base, look_up))

    @cached_property
    def _log_constants(self) -> dict[Node, Array]:
        """Logarithms of the bases that are columns alone, [1, runs]; 0 where the base is 0."""
        found: dict[Node, Array] = {}
        for base, _ in self._every_factor:
            if self._is_constant(base):
                value = self._constant(base)
                found[base] = np.log(np.where(value > 0, value, 1.0))
        return found

    @cached_property
    def _absent(self) -> list[Flags]:
        """Runs in which a term vanishes: where a base that is a column is 0."""
        found = []
        for term in self._terms:
            gone = np.zeros(len(self.runs), dtype=bool)
            for base, _ in term.factors:
                gone |= self._infinite(base)
                if self._is_constant(base):
                    value = self._constant(base)[0]
                    self._check_positive(base, value)
                    gone |= value == 0
            if term.multiplier is not None and self._masks_baseline(term):
                gone |= np.array(self._entries_of(term.multiplier.column)) == self.law.baseline
            found.append(gone)
        return found

    def _infinite(self, base: Node) -> Flags:
        """Runs in which a column of a factor is infinite: bits of what was never rounded."""
        names = {name.name for name in names_in(base)} & set(self._columns)
        columns = [self._columns[name] for name in names]
        found = [np.isinf(column) for column in columns if column.dtype.kind == "f"]
        return np.any(found, axis=0) if found else np.zeros(len(self.runs), dtype=bool)

    @property
    def _every_factor(self) -> list[Factor]:
        return [factor for term in self._terms for factor in term.factors]

    def _is_constant(self, node: Node) -> bool:
        return not any(name.name in self._names_of_parameters for name in names_in(node))

    @cached_property
    def _names_of_parameters(self) -> set[str]:
        return {parameter.name for parameter in self.law.every_parameter}

    def _constant(self, node: Node) -> Array:
        value = np.asarray(evaluate(node, lambda name: self._data(name.name)), dtype=np.float64)
        return np.broadcast_to(value, (1, len(self.runs)))

    def _check_positive(self, base: Node, value: Array) -> None:
        if (value < 0).any():
            row = int(np.flatnonzero(value < 0)[0])
            names = ", ".join(dict.fromkeys(name.name for name in names_in(base)))
            raise RequestError(
                f"the {self.law.name} law cannot take the logarithm of {value[row]:g}, from {names}",
                where=self.runs.addresses[row],
                advice="correct or leave out this run",
            )

    def _data(self, name: str) -> Any:
        if name in ("N", "D"):
            return (self.runs.params if name == "N" else self.runs.tokens)[None]
        return self._columns[name][None]

    def _at(self, outer: Array) -> Any:
        """Names as jets: parameters [batch, 1], entries of a column [batch, runs]; data as arrays [1,
        runs].
        """
        variables = [Jet.variable(outer[:, i : i + 1], i) for i in range(outer.shape[1])]

        def look_up(name: Name) -> Any:
            if not name.column:
                number = self._numbers.get(name.name)
                return self._data(name.name) if number is None else variables[number]
            entries = self._entries_of(name.column)
            total: Any = 0.0
            for entry in dict.fromkeys(entries):
                here = (np.array(entries) == entry).astype(np.float64)[None]
                number = self._numbers.get(f"{name.name}[{entry}]")
                total = total + here * (1.0 if number is None else variables[number])
            return total

        return look_up

    def _set_up_coefficients(self) -> None:
        names: list[str] = []
        self._first: list[int] = []
        index = np.zeros((len(self.runs), len(self._terms)), dtype=np.intp)
        fixed: list[bool] = []
        for t, term in enumerate(self._terms):
            self._first.append(len(names))
            own = _ONE if term.coefficient is None else term.coefficient.name
            if term.multiplier is None:
                names.append(own)
                fixed.append(term.coefficient is None)
                index[:, t] = len(names) - 1
                continue
            levels = self._levels(term.multiplier.column)
            entries = self._entries_of(term.multiplier.column)
            index[:, t] = [len(names) + levels.index(e) if e in levels else len(names) for e in entries]
            names += [f"{own} of {level}" for level in levels]
            fixed += [term.coefficient is None and level == self.law.baseline for level in levels]
        self.coefficients: tuple[str, ...] = tuple(names)
        self.fixed: Flags = np.array(fixed)
        self.index: Integers = index

    def _masks_baseline(self, term: Term) -> bool:
        return term.coefficient is not None and term.coefficient.baseline == 0.0

    def _levels(self, column: str) -> tuple[str, ...]:
        """Entries of a column that have a coefficient, the baseline first where it has one."""
        entries = sorted(set(self._entries_of(column)))
        of_column = [t for t in self._terms if t.multiplier is not None and t.multiplier.column == column]
        masked = any(self._masks_baseline(term) for term in of_column)
        others = [entry for entry in entries if entry != self.law.baseline]
        return tuple(others if masked else [self.law.baseline, *others])

    def _entries(self, parameter: Parameter) -> list[Parameter]:
        """A searched parameter, or one per entry of its column."""
        if not parameter.column:
            return [parameter]
        entries = sorted(set(self._entries_of(parameter.column)))
        kept = [e for e in entries if parameter.baseline is None or e != self.law.baseline]
        fields = (parameter.low, parameter.high, parameter.meaning, parameter.unit)
        return [Parameter(f"{parameter.name}[{entry}]", *fields) for entry in kept]

    def _entries_of(self, column: str) -> tuple[str, ...]:
        if column == "representation":
            return self.runs.representation
        return tuple(str(entry) for entry in self._columns[column])

    def _column(self, column: Column) -> Any:
        if isinstance(column.default, str):
            cells = self.runs.columns.get(column.name, ("",) * len(self.runs))
            return np.array([cell.strip() or column.default for cell in cells])
        found = self.runs.numbers(column.name, column.default)
        wrong = np.flatnonzero((found < column.low) | ((found >= column.high) & np.isfinite(column.high)))
        if wrong.size:
            raise RequestError(
                f"{column.name} is {found[wrong[0]]:g}, not from {column.low:g} to below {column.high:g}",
                where=self.runs.addresses[wrong[0]],
                advice="correct or leave out this run",
            )
        return found

    def _check_baseline(self) -> None:
        needed = any(
            p.baseline is not None and p.column == "representation" for p in self.law.every_parameter
        )
        if needed and self.law.baseline not in self.runs.names:
            known = ", ".join(self.runs.names)
            raise RequestError(
                f"no run is of the baseline representation {self.law.baseline!r}, so rho has no unit",
                where=self.runs.data,
                advice=f"add runs of {self.law.baseline!r}, or name as baseline one of {known}",
            )

    def _check_within_representations(self) -> None:
        """rho is one number per representation: the columns it is made of must agree within one."""
        if not self.law.prices_features:
            return
        used = {name.name for name in names_in(parse(self.law.rho))}
        of = np.array(self.runs.representation)
        for column in (c.name for c in self.law.columns if c.name in used and not isinstance(c.default, str)):
            for name in self.runs.names:
                cells = self._columns[column][of == name]
                if np.ptp(cells) > _SAME * abs(float(cells.mean())):
                    ends = f"{cells.min():g} to {cells.max():g}"
                    raise RequestError(
                        f"representation {name!r} has runs with different {column} ({ends})",
                        where=self.runs.data,
                        advice="give each its own representation name",
                    )
                self._columns[column][of == name] = cells.mean()

    def _check_determined(self) -> None:
        """No run that bears on a parameter: no fit, and no optimiser, would notice."""
        middle = np.array([[0.6 * p.low + 0.4 * p.high for p in self.outer]])
        look_up = self._at(middle)
        moved = set(self.power(middle).slopes if self.wrapped else ())
        here = ~np.stack(self._absent, axis=1)
        for t in range(len(self._terms)):
            slopes = self._log(t, look_up).slopes
            moved |= {i for i, s in slopes.items() if np.any(np.where(here[:, t], s, 0.0) != 0)}
        names = [p.name for i, p in enumerate(self.outer) if i not in moved]
        used = np.unique(self.index[here])
        names += [name for i, name in enumerate(self.coefficients) if i not in used and not self.fixed[i]]
        if names:
            raise RequestError(
                f"no run says anything about {', '.join(names)} of the {self.law.name} law",
                where=self.runs.data,
                advice="add runs that do, or fit a law without them",
            )

    def _centred(self, values: Array, absent: Flags, centre: bool) -> Array:
        """Values less their mean over the runs that have the term; 0 in those that have not."""
        if values.shape[1] == 1:
            return np.zeros_like(values) if centre else values
        if absent.any():
            values = np.where(absent, 0.0, values)
        mean = values.sum(axis=1, keepdims=True) / max(int((~absent).sum()), 1)
        return np.asarray(values - mean if centre else values)

    def _mean(self, values: Array, absent: Flags, batch: int) -> Array:
        wide = np.broadcast_to(values, (batch, len(absent)))
        return np.asarray(wide[:, ~absent].mean(axis=1) if (~absent).any() else np.zeros(batch))
