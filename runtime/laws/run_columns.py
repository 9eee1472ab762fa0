"""What a law reads of runs: parameters, tokens and the columns that it names, checked."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .base import Column, Law
from .formula import Node, evaluate, names_in, parse
from .runs import Array, Runs

_SAME = 0.01  # relative spread of a column within one representation that passes as Monte Carlo noise


class RunColumns:
    """The columns of runs that a law names, in the order of the runs. Raises RequestError when cells are not
    what the law takes, or no run is of a baseline that it needs.

    values: columns by name, each `[runs]`, of numbers or of names.
    """

    def __init__(self, law: Law, runs: Runs) -> None:
        self.law, self.runs = law, runs
        self.values = {column.name: self._column(column) for column in law.every_column}
        self._check_baseline()

    def of(self, name: str) -> Any:
        """N, D, the representation or a column, [1, runs]."""
        if name in ("N", "D"):
            return (self.runs.params if name == "N" else self.runs.tokens)[None]
        return np.array([self.runs.representation]) if name == "representation" else self.values[name][None]

    def entries(self, column: str) -> tuple[str, ...]:
        """What a column of names says of each run."""
        if column == "representation":
            return self.runs.representation
        return tuple(str(entry) for entry in self.values[column])

    @cached_property
    def indicators(self) -> dict[str, dict[str, Array]]:
        """Where a column of names has which entry, as 0 or 1, [1, runs]."""
        found: dict[str, dict[str, Array]] = {}
        for column in {name.column for name in names_in(self.law.tree) if name.column}:
            entries = np.array(self.entries(column))
            found[column] = {str(e): (entries == e)[None].astype(np.float64) for e in np.unique(entries)}
        return found

    def constant(self, node: Node) -> Array:
        """A formula of data alone, [1, runs]."""
        value = np.asarray(evaluate(node, lambda name: self.of(name.name)), dtype=np.float64)
        return np.broadcast_to(value, (1, len(self.runs)))

    def infinite(self, base: Node) -> NDArray[np.bool_]:
        """Runs in which a column of a factor is infinite: bits of what was never rounded."""
        names = {name.name for name in names_in(base)} & set(self.values)
        columns = [self.values[name] for name in names]
        found = [np.isinf(column) for column in columns if column.dtype.kind == "f"]
        return np.any(found, axis=0) if found else np.zeros(len(self.runs), dtype=bool)

    def check_positive(self, base: Node, value: Array) -> None:
        """Raise RequestError at the first run where a factor of a term is below zero."""
        if (value < 0).any():
            row = int(np.flatnonzero(value < 0)[0])
            names = ", ".join(dict.fromkeys(name.name for name in names_in(base)))
            raise RequestError(
                f"the {self.law.name} law cannot take the logarithm of {value[row]:g}, from {names}",
                where=self.runs.addresses[row],
                advice="correct or leave out this run",
            )

    def settle_within_representations(self) -> None:
        """rho is one number per representation: the columns it is made of must agree within one."""
        if not self.law.prices_features:
            return
        used = {name.name for name in names_in(parse(self.law.rho))}
        of = np.array(self.runs.representation)
        for column in (c.name for c in self.law.columns if c.name in used and not isinstance(c.default, str)):
            for name in self.runs.names:
                cells = self.values[column][of == name]
                if np.ptp(cells) > _SAME * abs(float(cells.mean())):
                    ends = f"{cells.min():g} to {cells.max():g}"
                    raise RequestError(
                        f"representation {name!r} has runs with different {column} ({ends})",
                        where=self.runs.data,
                        advice="give each its own representation name",
                    )
                self.values[column][of == name] = cells.mean()

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
