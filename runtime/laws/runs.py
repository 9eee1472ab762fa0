"""The runs a law is fitted to: one row per finished training run, as numpy columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError

Array = NDArray[np.float64]

UNIT_OF_PARAMS = "non-embedding parameters, zeros counted"


@dataclass(frozen=True)
class Runs:
    """Finished runs, one entry per run in every column.

    params: N, counted in `unit_of_params`; tokens: D, training tokens; loss: validation loss in nats per
    token. representation: the name of what each run stored its weights in. columns: any further columns by
    name, as text (a law asks for the numbers it needs with `numbers`). addresses: where each run came from
    ("runs.csv:7"), for messages. data: what the runs are runs of, in words; a fit carries it. left_out: runs
    that diverged and are not among these, for messages.

    Raises RequestError on columns of unequal length, and on counts or losses that are not positive and
    finite.
    """

    params: Array
    tokens: Array
    loss: Array
    representation: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    data: str = "runs without a label"
    unit_of_params: str = UNIT_OF_PARAMS
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.representation)
        if not self.addresses:
            object.__setattr__(self, "addresses", tuple(f"run {i + 1}" for i in range(count)))
        for name, size in self._sizes().items():
            if size != count:
                raise RequestError(f"column {name!r} has {size} entries for {count} runs", where=self.data)
        for name in ("params", "tokens", "loss"):
            column = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, column)
            bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
            if bad.size:
                value, where = float(column[bad[0]]), self.addresses[bad[0]]
                raise RequestError(
                    f"{name} is {value:g}, not a positive finite number",
                    where=where,
                    advice="correct or leave out this run",
                )

    def __len__(self) -> int:
        return len(self.representation)

    @property
    def names(self) -> tuple[str, ...]:
        """The representations, each once, in alphabetical order."""
        return tuple(sorted(set(self.representation)))

    @property
    def tokens_per_param(self) -> Array:
        """D/N of each run."""
        return self.tokens / self.params

    def numbers(self, name: str, default: float | None = None) -> Array:
        """A further column as numbers; a column that is absent, or an empty cell, is `default`.

        Raises RequestError when there is no default to stand in, and on text that is not a finite number.
        """
        cells = self.columns.get(name)
        if cells is None and default is None:
            raise RequestError(
                f"the runs have no column {name!r}",
                where=self.data,
                advice=f"add it, or fit a law that does without {name!r}",
            )
        if cells is None:
            return np.full(len(self), default, dtype=np.float64)
        return np.array(
            [self._number(name, i, cell, default) for i, cell in enumerate(cells)], dtype=np.float64
        )

    def select(self, keep: NDArray[np.bool_]) -> Runs:
        """The runs where `keep` is true, in the same order."""
        index = np.flatnonzero(keep)

        def pick(cells: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(cells[i] for i in index)

        return Runs(
            params=self.params[index],
            tokens=self.tokens[index],
            loss=self.loss[index],
            representation=pick(self.representation),
            columns={name: pick(cells) for name, cells in self.columns.items()},
            addresses=pick(self.addresses),
            data=self.data,
            unit_of_params=self.unit_of_params,
            left_out=self.left_out,
        )

    def _sizes(self) -> dict[str, int]:
        sizes = {name: int(np.size(getattr(self, name))) for name in ("params", "tokens", "loss")}
        return (
            sizes
            | {name: len(cells) for name, cells in self.columns.items()}
            | {"addresses": len(self.addresses)}
        )

    def _number(self, name: str, i: int, cell: str, default: float | None) -> float:
        if not cell.strip() and default is not None:
            return default
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise RequestError(f"{name} is {cell!r}, not a finite number", where=self.addresses[i])
        return value
