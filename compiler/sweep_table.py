"""Losses of a sweep over seeds: mean, standard deviation and number of seeds of each spec and size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .sweep import Cell, Plan


@dataclass(frozen=True)
class SeedRow:
    """Runs that differ in nothing but their seed. Losses are by seed.

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
    return tuple(_row(cells, settings) for cells, settings in alike(plan))


def alike(plan: Plan) -> list[tuple[list[Cell], dict[str, Any]]]:
    """Cells that differ in nothing but their seed, and the settings that tell them from the plan's others."""
    groups: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        key = json.dumps([cell.experiment.spec.name, cell.size, cell.tokens, _settings(cell)], sort_keys=True)
        groups.setdefault(key, []).append(cell)
    every = [_settings(cells[0]) for cells in groups.values()]
    seen = {
        name: {json.dumps(row.get(name), sort_keys=True) for row in every} for row in every for name in row
    }
    varying = {name for name, values in seen.items() if len(values) > 1}
    return [
        (cells, {name: value for name, value in settings.items() if name in varying})
        for cells, settings in zip(groups.values(), every, strict=True)
    ]


def _settings(cell: Cell) -> dict[str, Any]:
    settings = cell.experiment.settings.to_document()
    kept = {name: value for name, value in settings.items() if name not in ("seed", "tokens")}
    return kept | ({"scratch": True} if cell.scratch else {})


def _row(cells: list[Cell], settings: dict[str, Any]) -> SeedRow:
    first = cells[0]
    losses = {cell.experiment.settings.seed: cell.loss for cell in cells}
    return SeedRow(
        spec=first.experiment.spec.name,
        size=first.size,
        params=first.params,
        tokens=first.tokens,
        settings=settings,
        losses={seed: loss for seed, loss in losses.items() if loss is not None},
        missing=tuple(seed for seed, loss in losses.items() if loss is None),
        held_out=first.held_out,
    )
