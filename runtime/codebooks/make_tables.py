"""Computes `gaussian.safetensors`: `python -m rhoc.runtime.codebooks.make_tables FILE [dimensions,bits ...]`.

Lloyd's rounds on fresh samples with noise on the points that fades out (stochastic relaxation, Zeger, Vaisey
and Gersho 1992), which leaves the poor local optima that plain rounds end in; then rounds on samples so
large that their noise no longer shows. Seeded: the same table every time on one machine.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..gaussian import Source
from ..stages.grids.lloyd_max import lloyd_max
from .fixed import optimal_factors
from .gaussian import table_name
from .k_means import centroids, errors, k_means
from .lattices import lattice_table
from .nearest import nearest, pieces

_SEED = 2411_17525
_TEST = 1 << 22  # numbers that a table's error is measured on


@dataclass(frozen=True)
class Plan:
    """One table to compute: how many rounds under noise, and how many vectors in each."""

    dimensions: int
    bits: int
    rounds: int
    sample: int
    last: tuple[int, ...]  # the rounds without noise, in samples
    lattice: bool = False  # begin with the shortest vectors of E8, and add no noise

    @property
    def count(self) -> int:
        """Vectors in the table."""
        return int(1 << self.bits)


def plans() -> list[Plan]:
    """All tables that ship."""
    pairs = [(1, b) for b in range(1, 9)] + [(2, b) for b in range(2, 13)] + [(3, 6), (3, 9), (3, 12)]
    pairs += [(4, b) for b in range(4, 13)] + [(6, 12)] + [(8, b) for b in (8, 9, 10, 12)] + [(4, 16)]
    return [plan(*pair) for pair in pairs]


def plan(dimensions: int, bits: int) -> Plan:
    """How one table is computed: smaller tables afford more rounds."""
    count = 1 << bits
    if (dimensions, bits) == (8, 8):  # 241 of its points are two shells of E8, which chance does not find
        return Plan(dimensions, bits, 200, 1 << 16, (4, 4, 4), lattice=True)
    if count > 4096:
        return Plan(dimensions, bits, 30, 1 << 21, (2, 4, 4))
    if dimensions > 3 and count * dimensions > 4096:
        return Plan(dimensions, bits, 60, 1 << 18, (2, 8, 8))
    rounds = 1200 if count <= 256 else 400 if count <= 1024 else 150
    last = (4,) * 6 if count <= 64 else (2, 4, 4)
    return Plan(dimensions, bits, rounds, min(max(256 * count, 1 << 15), 1 << 19), last)


def compute(plan: Plan, seed: int = _SEED) -> Tensor:
    """The table, float32 `[count, dimensions]`."""
    if plan.dimensions == 1:
        return torch.tensor(lloyd_max(plan.bits).levels, dtype=torch.float32).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    table = _start(plan, generator, seed)
    for done in range(plan.rounds):
        x = torch.randn(plan.sample, plan.dimensions, generator=generator)
        table, error = _round(table, x)
        if not plan.lattice:
            fading = (1 - (done + 1) / plan.rounds) ** 3 * error**0.5
            table = table + fading * torch.randn(table.shape, generator=generator)
    for size in plan.last:
        x = torch.randn(size * plan.sample, plan.dimensions, generator=generator)
        table, _ = _round(table, x)
    return table


def _start(plan: Plan, generator: torch.Generator, seed: int) -> Tensor:
    """What the rounds begin with."""
    if plan.lattice:
        (factor,) = optimal_factors("e8", plan.dimensions, plan.bits, 1, "residual", Source())
        return lattice_table("e8", plan.count) * factor
    x = torch.randn(64 * plan.count, plan.dimensions, generator=generator)
    return k_means(x, plan.count, seed=seed, init="kmeans++")


def _round(table: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """One of Lloyd's rounds: the new table and the squared error of a number before it."""
    codes = nearest(x, table)
    error = float(errors(x, table[codes], None).mean()) / table.shape[1]
    return centroids(x, codes, table, None)[0], error


def measure(table: Tensor, seed: int = _SEED + 1) -> tuple[float, float]:
    """Squared error of a number on fresh Gaussian vectors, and its standard error."""
    generator = torch.Generator().manual_seed(seed)
    dimensions, count = table.shape[1], max(_TEST // table.shape[1], 1)
    ratios = []
    for rows in pieces(count, -(-count // 32)):
        x = torch.randn(rows.stop - rows.start, dimensions, generator=generator)
        error = errors(x, table[nearest(x, table)], None).double().sum()
        ratios.append(float(error / x.double().square().sum()))
    sample = torch.tensor(ratios, dtype=torch.float64)
    return float(sample.mean()), float(sample.std() / len(ratios) ** 0.5)


def main(arguments: list[str]) -> int:
    """Compute the tables named by `d,b` pairs (all when none is named) and add them to a file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = Path(arguments[0])
    wanted = [plan(*map(int, pair.split(","))) for pair in arguments[1:]] or plans()
    tables: dict[str, Tensor] = {}
    facts: dict[str, dict[str, float]] = {}
    if path.exists():
        tables = load_file(path)
        with safe_open(str(path), framework="pt") as file:
            facts = {table_name(f["dimensions"], f["bits"]): f for f in json.loads(file.metadata()["tables"])}
    for job in wanted:
        began = time.monotonic()
        name, table = table_name(job.dimensions, job.bits), compute(job)
        kept = table if job.dimensions == 1 else table.half()  # scalar levels are exact to their last digit
        error, standard_error = measure(kept.float())
        tables[name] = kept.contiguous()
        facts[name] = {
            "dimensions": job.dimensions,
            "bits": job.bits,
            "gmse": round(error, 9),
            "standard_error": float(f"{standard_error:.2g}"),
            "seed": _SEED,
        }
        metadata = {"tables": json.dumps([facts[key] for key in sorted(facts)])}
        save_file({key: tables[key] for key in sorted(tables)}, path, metadata=metadata)
        print(f"{name}: {error:.7f} +- {standard_error:.1g}, {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
