"""rho of composites read off their own Gaussian error, on the published tables and on QuEST's formats."""

from __future__ import annotations

import numpy as np

from ..runtime.capacity import gmse
from ..runtime.laws.composition import Evidence
from ..runtime.laws.composition.curve import Curve, fit_curve, leave_one_error_out
from ..runtime.laws.published import Table
from ..runtime.laws.runs import Array
from ..runtime.text_parser import from_text
from .composition import TABLES, evidence, table_of
from .published_fits import published_fits

# As the paper's text says that each figure quantised; for Fig. 9 it gives no group, and this one is assumed.
_GRIDS = {
    "Fig. 6": "midrise, tensor, rms",
    "Fig. 7": "midrise, tensor, rms",
    "Fig. 9": "midtread, group=128, absmax",
}
_DENSE_BITS = 16


def composite_errors(label: str, *, anchored: bool = False) -> Array:
    """|predicted - measured| rho of the cells of a table (`evidence`), when rho follows the measured error.

    Each side has a curve rho(GMSE) through its own margin of the table. A composite has the error of the
    whole chain when both act on the weights, and 1 - (1 - g_1)(1 - g_2) when they act on the two factors of a
    product: that of a product of two Gaussian numbers, each represented at the scale of least error.
    log rho is the mean of the two curves there, weighted by the errors of the parts. anchored: the
    multipliers of the parts, times what the curves say that composing costs beyond them.
    Raises KeyError for another table.
    """
    table, cells = table_of(published_fits()[TABLES[label]]), evidence()[list(TABLES).index(label)]
    grid = _GRIDS.get(label, "")
    rows = np.array([_error(grid, [(table.rows, value)]) for value in table.row_values])[cells.lines[0]]
    columns = np.array([_error(grid, [(table.columns, v)]) for v in table.column_values])[cells.lines[1]]
    curves = _margin(rows, cells.parts[0]), _margin(columns, cells.parts[1])
    share, both = rows / (rows + columns), _both(grid, table, rows, columns, cells)
    predicted = curves[0].rho(both) ** share * curves[1].rho(both) ** (1 - share)
    if anchored:
        predicted = predicted * cells.parts.prod(axis=0) / (curves[0].rho(rows) * curves[1].rho(columns))
    return np.asarray(np.abs(predicted - cells.measured))


def quest_formats_left_out() -> dict[str, float]:
    """Predicted minus fitted rho of QuEST's INT formats, by the curve through those of other bit widths.

    Weights of 1 to 4 bits alone, and weights and inputs alike, whose rho is the curve squared.
    """
    entries = published_fits()["quest"].entries
    names = [f"W{bits}A{inputs}" for bits in range(1, 5) for inputs in (16, bits)]
    errors = [_error("midrise, tensor, rms", [("weight bits", float(name[1]))]) for name in names]
    factors = np.array([1.0 if name.endswith("A16") else 2.0 for name in names])
    rho = np.array([entries[name].value for name in names])
    found = leave_one_error_out(np.array(errors), rho, factors)
    return dict(zip(names, found.tolist(), strict=True))


def _both(grid: str, table: Table, rows: Array, columns: Array, cells: Evidence) -> Array:
    """GMSE of composites in the cells of a table, from those of the parts where they share no tensor."""
    if table.rows.split()[0] != table.columns.split()[0]:
        return 1 - (1 - rows) * (1 - columns)
    pairs = [(table.row_values[i], table.column_values[j]) for i, j in cells.lines.T]
    return np.array([_error(grid, [(table.rows, row), (table.columns, column)]) for row, column in pairs])


def _margin(errors: Array, rho: Array) -> Curve:
    """The curve through the formats of a margin, each once."""
    _, once = np.unique(errors, return_index=True)
    return fit_curve(errors[once], rho[once])


def _error(grid: str, parts: list[tuple[str, float]]) -> float:
    """GMSE of what entries of a table do to one tensor: sparsify first, then quantise."""
    sparse = [f"sparsify({value:g})" for title, value in parts if "sparsity" in title and value]
    bits = [value for title, value in parts if "bits" in title and value < _DENSE_BITS]
    stages = [*sparse, *(f"quantize(int{value:g}, {grid})" for value in bits)]
    return gmse(from_text(" >> ".join(stages))).value if stages else 0.0
