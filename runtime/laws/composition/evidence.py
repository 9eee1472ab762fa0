"""What a rule of composition is held to: multipliers of two parts alone, and of both together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..published import Table
from ..runs import Array


@dataclass(frozen=True)
class Evidence:
    """The cells of one table in which both parts compress.

    families: those of the two parts; parts: their multipliers alone, `[2, cells]`; measured: those of both
    together, `[cells]`; lines: row and column of each cell, `[2, cells]`.
    """

    name: str
    families: tuple[str, str]
    parts: Array
    measured: Array
    lines: NDArray[np.intp]

    @classmethod
    def of_table(cls, name: str, table: Table) -> Evidence:
        """The cells beside the baseline. What is called sparsity is sparse; anything else is scalar."""
        values = np.array(table.values)
        row, column = table.row_values.index(table.baseline[0]), table.column_values.index(table.baseline[1])
        away = np.ones(values.shape, dtype=bool)
        away[row] = away[:, column] = False
        i, j = np.nonzero(away)
        parts = np.stack([values[i, column], values[row, j]])
        return cls(name, (_family(table.rows), _family(table.columns)), parts, values[i, j], np.stack([i, j]))

    @property
    def least_error(self) -> float:
        """The largest error of any rule here that prices a composite no higher than its parts, at best."""
        return float(np.maximum(self.measured - self.parts.min(axis=0), 0).max())

    def split_by_line(self) -> Iterator[tuple[Evidence, Evidence]]:
        """Every row, then every column, left out: the others, and the one."""
        for axis in (0, 1):
            for line in np.unique(self.lines[axis]):
                out = self.lines[axis] == line
                if not out.all():
                    yield self.select(~out), self.select(out)

    def select(self, keep: NDArray[np.bool_]) -> Evidence:
        """The cells where `keep` is true."""
        return Evidence(
            self.name, self.families, self.parts[:, keep], self.measured[keep], self.lines[:, keep]
        )


def _family(title: str) -> str:
    return "sparse" if "sparsity" in title else "scalar"
