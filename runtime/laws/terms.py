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
from .base import RHO, Integers, Law, Parameter
from .formula import Call, Name, Node, evaluate, names_in, parse
from .functions import log
from .jet import Jet, as_jet
from .run_columns import RunColumns
from .runs import Array, Runs

Flags = NDArray[np.bool_]

_ONE = "1"  # the coefficient of a term that has none


@dataclass(frozen=True)
class Basis:
    """Log basis functions at a batch of outer parameters, with exact derivatives.

    logs: of each term, with arrays that broadcast to [batch, runs]; -inf where a run has no such term.
    """

    logs: tuple[Jet, ...]
    shape: tuple[int, int]

    @property
    def value(self) -> Array:
        """The logarithms themselves, [batch, runs, terms]."""
        return np.stack([np.broadcast_to(jet.value, self.shape) for jet in self.logs], axis=2)


@dataclass(frozen=True)
class _Parts:
    """What the logarithm of a term is summed from.

    constants: logarithms of columns, [1, runs], as they are and with mean zero, and their exponents; mixed:
    factors whose bases have parameters, which differ between `rows` alone; level: which of these every run
    is like; counts: how many runs with the term are like each; absent: those rows that have no such term.
    """

    constants: tuple[tuple[Array, Array, Node], ...]
    mixed: tuple[Factor, ...]
    rows: Integers
    level: Integers
    counts: Array
    absent: Flags


@dataclass(frozen=True)
class Reading:
    """Named values of a batch of solutions, each an array [batch]: parameters, and rho by representation."""

    parameters: dict[str, Array]
    rho: dict[str, Array]


class Terms:
    """A law on runs. Raises RequestError when the runs cannot support it.

    coefficients: their names; fixed: which of them are 1 and stay so; index: which one each term of each run
    uses, [runs, terms]; spans: all those of a term; shares: which of these each run uses, as 0 or 1,
    [coefficients of the term, runs], None where it has but one; outer: searched parameters, under the names
    of their entries; signs, inside: per term.
    """

    def __init__(self, law: Law, runs: Runs) -> None:
        self.law, self.runs = law, runs
        self._columns = RunColumns(law, runs)
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
        self._columns.settle_within_representations()
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

    def basis(self, outer: Array, *, derivatives: bool = True) -> Basis:
        """Log basis functions at outer parameters [batch, outer], centred over the runs.

        Each has mean zero over the runs: A/N^alpha with raw N has a coefficient of 1e2 to 1e9, and the
        problem a condition number of 1e11. Without `derivatives` the jets are values alone.
        """
        logs = []
        for t, term in enumerate(self._terms):
            centred = term.coefficient is not None or term.multiplier is not None
            jet = self._log(t, outer, centred=centred, derivatives=derivatives)
            logs.append(Jet(jet.value + self._blank[t], jet.slopes, jet.curves) if t in self._blank else jet)
        return Basis(tuple(logs), (len(outer), len(self.runs)))

    def design(self, outer: Array) -> Array:
        """What the coefficients multiply at outer parameters [batch, outer], [batch, coefficients, runs]: in
        the sum under the power, where there is one.
        """
        basis = self.basis(outer, derivatives=False)
        found = np.zeros((len(outer), len(self.coefficients), len(self.runs)))
        for t, jet in enumerate(basis.logs):
            if self.inside[t] or not self.wrapped:
                column, share = (self.signs[t] * np.exp(jet.value))[:, None], self.shares[t]
                found[:, self.spans[t]] = column if share is None else column * share
        return found

    def read(self, coefficients: Array, outer: Array) -> Reading:
        """Named parameters and multipliers of solutions [batch, coefficients] and [batch, outer]."""
        look_up = self._at(outer)
        found: dict[str, Array] = {
            p.name: outer[:, i] for p, i in zip(self.outer, range(outer.shape[1]), strict=True)
        }
        for t, term in enumerate(self._terms):
            mean = self._mean(self._log(t, outer, derivatives=False).value, self._absent[t], len(outer))
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
        columns = self._columns.values.items()
        return {
            name: np.broadcast_to(
                np.asarray(self.law.price(found, {c: column[row] for c, column in columns})), batch
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

    def _log(self, t: int, outer: Array, *, centred: bool = False, derivatives: bool = True) -> Jet:
        """Log basis of a term, broadcastable to [batch, runs]; 0, or anything, in runs without the term."""
        parts = self._parts[t]
        total: Any = np.zeros((1, 1))
        look_up = self._at(outer, derivatives=derivatives)
        for plain, with_mean_zero, exponent in parts.constants:
            total = evaluate(exponent, look_up) * (with_mean_zero if centred else plain) + total
        if parts.mixed:
            total = total + self._mixed(parts, self._at(outer, parts.rows, derivatives), centred)
        return as_jet(total)

    def _mixed(self, parts: _Parts, look_up: Any, centred: bool) -> Jet:
        """The sum of factors with parameters in their bases: once per kind of run, then for every run."""
        total: Any = np.zeros((1, 1))
        with np.errstate(invalid="ignore"):  # in runs without the term
            for base, exponent in parts.mixed:
                total = total + self._log_base(base, look_up) * evaluate(exponent, look_up)
        share = parts.counts / max(parts.counts.sum(), 1.0)

        def spread(values: Array) -> Array:
            if values.shape[1] == 1:
                return np.zeros_like(values) if centred else values
            if parts.absent.any():
                values = np.where(parts.absent, 0.0, values)
            return np.take(values - (values @ share)[:, None] if centred else values, parts.level, axis=1)

        return as_jet(total).mapped(spread)

    def _log_base(self, base: Node, look_up: Any) -> Any:
        if isinstance(base, Call) and base.function == "exp":
            return evaluate(base.arguments[0], look_up)
        return log(evaluate(base, look_up))

    @cached_property
    def _parts(self) -> list[_Parts]:
        return [self._parts_of(term, absent) for term, absent in zip(self._terms, self._absent, strict=True)]

    def _parts_of(self, term: Term, absent: Flags) -> _Parts:
        constants, mixed = [], []
        for base, exponent in term.factors:
            if self._is_constant(base) and not self._of_runs(exponent):
                value = self._columns.constant(base)
                logs = np.where(absent, 0.0, np.log(np.where(value > 0, value, 1.0)))
                mean = logs.sum() / max(int((~absent).sum()), 1)
                constants.append((logs, np.where(absent, 0.0, logs - mean), exponent))
            else:
                mixed.append((base, exponent))
        used = {name for factor in mixed for node in factor for name in self._of_runs(node)}
        keys = [np.unique(self._columns.of(name)[0], return_inverse=True)[1] for name in sorted(used)]
        _, rows, level = np.unique(
            np.stack([absent.astype(np.intp), *keys]), axis=1, return_index=True, return_inverse=True
        )
        level = level.reshape(-1)
        counts = np.bincount(level[~absent], minlength=len(rows)).astype(np.float64)
        return _Parts(tuple(constants), tuple(mixed), rows, level, counts, absent[rows])

    def _of_runs(self, node: Node) -> set[str]:
        """Names of data in a formula: N, D and columns."""
        found = {name.name for name in names_in(node)} | {n.column for n in names_in(node) if n.column}
        return found - self._names_of_parameters

    @cached_property
    def _blank(self) -> dict[int, Array]:
        """-inf in runs without the term, 0 in others, [1, runs]; of terms that some run is without."""
        return {
            t: np.where(absent, -np.inf, 0.0)[None] for t, absent in enumerate(self._absent) if absent.any()
        }

    @cached_property
    def _absent(self) -> list[Flags]:
        """Runs in which a term vanishes: where a base that is a column is 0."""
        found = []
        for term in self._terms:
            gone = np.zeros(len(self.runs), dtype=bool)
            for base, _ in term.factors:
                gone |= self._columns.infinite(base)
                if self._is_constant(base):
                    value = self._columns.constant(base)[0]
                    self._columns.check_positive(base, value)
                    gone |= value == 0
            if term.multiplier is not None and self._masks_baseline(term):
                gone |= np.array(self._columns.entries(term.multiplier.column)) == self.law.baseline
            found.append(gone)
        return found

    def _is_constant(self, node: Node) -> bool:
        return not any(name.name in self._names_of_parameters for name in names_in(node))

    @cached_property
    def _names_of_parameters(self) -> set[str]:
        return {parameter.name for parameter in self.law.every_parameter}

    def _at(self, outer: Array, rows: Integers | slice = slice(None), derivatives: bool = True) -> Any:
        """Names as jets, or arrays without `derivatives`: parameters [batch, 1], entries of a column [batch,
        rows]; data as arrays [1, rows].
        """
        columns = [outer[:, i : i + 1] for i in range(outer.shape[1])]
        variables: list[Any] = [Jet.variable(c, i) if derivatives else c for i, c in enumerate(columns)]

        def look_up(name: Name) -> Any:
            if not name.column:
                number = self._numbers.get(name.name)
                return self._columns.of(name.name)[:, rows] if number is None else variables[number]
            total: Any = 0.0
            for entry, here in self._columns.indicators[name.column].items():
                number = self._numbers.get(f"{name.name}[{entry}]")
                total = total + here[:, rows] * (1.0 if number is None else variables[number])
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
            entries = self._columns.entries(term.multiplier.column)
            index[:, t] = [len(names) + levels.index(e) if e in levels else len(names) for e in entries]
            names += [f"{own} of {level}" for level in levels]
            fixed += [term.coefficient is None and level == self.law.baseline for level in levels]
        self.coefficients: tuple[str, ...] = tuple(names)
        self.fixed: Flags = np.array(fixed)
        self.index: Integers = index
        ends = (*self._first[1:], len(names))
        self.spans = tuple(slice(first, end) for first, end in zip(self._first, ends, strict=True))
        self.shares: tuple[Array | None, ...] = tuple(
            (index[:, t] == np.arange(span.start, span.stop)[:, None]).astype(np.float64)
            if span.stop - span.start > 1
            else None
            for t, span in enumerate(self.spans)
        )

    def _masks_baseline(self, term: Term) -> bool:
        return term.coefficient is not None and term.coefficient.baseline == 0.0

    def _levels(self, column: str) -> tuple[str, ...]:
        """Entries of a column that have a coefficient, the baseline first where it has one."""
        entries = sorted(set(self._columns.entries(column)))
        of_column = [t for t in self._terms if t.multiplier is not None and t.multiplier.column == column]
        masked = any(self._masks_baseline(term) for term in of_column)
        others = [entry for entry in entries if entry != self.law.baseline]
        return tuple(others if masked else [self.law.baseline, *others])

    def _entries(self, parameter: Parameter) -> list[Parameter]:
        """A searched parameter, or one per entry of its column."""
        if not parameter.column:
            return [parameter]
        entries = sorted(set(self._columns.entries(parameter.column)))
        kept = [e for e in entries if parameter.baseline is None or e != self.law.baseline]
        fields = (parameter.low, parameter.high, parameter.meaning, parameter.unit)
        return [Parameter(f"{parameter.name}[{entry}]", *fields) for entry in kept]

    def _check_determined(self) -> None:
        """No run that bears on a parameter: no fit, and no optimiser, would notice."""
        middle = np.array([[0.6 * p.low + 0.4 * p.high for p in self.outer]])
        moved = set(self.power(middle).slopes if self.wrapped else ())
        here = ~np.stack(self._absent, axis=1)
        for t in range(len(self._terms)):
            slopes = self._log(t, middle).slopes
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

    def _mean(self, values: Array, absent: Flags, batch: int) -> Array:
        wide = np.broadcast_to(values, (batch, len(absent)))
        return np.asarray(wide[:, ~absent].mean(axis=1) if (~absent).any() else np.zeros(batch))
