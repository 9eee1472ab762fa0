"""Losses of a sweep over seeds: mean, standard deviation and number of seeds of each spec and size."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .sweep import Cell, Plan


@dataclass(frozen=True)
class SeedRow:
    """Runs that differ in nothing but their seed. Losses are nats per token, by seed.

    `settings` are those of the trainer that tell this row from others of the sweep; `missing` are seeds whose
    runs are not finished.
    """

    spec: str
    size: str
    params: int
    tokens: int
    settings: dict[str, Any]
    losses: dict[int, float]
    missing: tuple[int, ...]
    held_out: bool

    @property
    def mean(self) -> float | None:
        """Mean loss over the seeds that are there."""
        return fmean(self.losses.values()) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds (n - 1 in the denominator); None for fewer than two."""
        return stdev(self.losses.values()) if len(self.losses) > 1 else None

    def to_document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "spec": self.spec,
            "size": self.size,
            "params": self.params,
            "tokens": self.tokens,
            "settings": self.settings,
            "held_out": self.held_out,
            "loss_mean": self.mean,
            "loss_std": self.deviation,
            "seeds": len(self.losses),
            "missing": len(self.missing),
            "losses": {str(seed): loss for seed, loss in self.losses.items()},
        }


def seed_table(plan: Plan) -> tuple[SeedRow, ...]:
    """One row for each (spec, size, tokens) of a plan, in the order of the grid."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in plan.cells:
        key = (cell.experiment.spec.name, cell.size, cell.tokens, tuple(_settings(cell).items()))
        groups.setdefault(key, []).append(cell)
    every = [_settings(cells[0]) for cells in groups.values()]
    varying = [name for name in every[0] if len({row[name] for row in every}) > 1]
    return tuple(_row(cells, varying) for cells in groups.values())


def _settings(cell: Cell) -> dict[str, Any]:
    settings = cell.experiment.settings.to_document()
    return {name: value for name, value in settings.items() if name not in ("seed", "tokens")}


def _row(cells: list[Cell], varying: list[str]) -> SeedRow:
    first, settings = cells[0], _settings(cells[0])
    losses = {cell.experiment.settings.seed: cell.loss for cell in cells}
    return SeedRow(
        spec=first.experiment.spec.name,
        size=first.size,
        params=first.params,
        tokens=first.tokens,
        settings={name: settings[name] for name in varying},
        losses={seed: loss for seed, loss in losses.items() if loss is not None},
        missing=tuple(seed for seed, loss in losses.items() if loss is None),
        held_out=first.held_out,
    )
