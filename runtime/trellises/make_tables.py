"""Trains the tables in `tables.safetensors`: `python -m rhoc.runtime.trellises.make_tables FILE [k,L ...]`.

The generalised Lloyd algorithm on Gaussian data: find the shortest paths, move the value of each state to the
mean of what it stood for, repeat (Ayanoglu and Gray, "The design of predictive trellis waveform coders",
1983). It starts from the `xor` code and keeps its symmetry, that complementing a state negates its value, so
half a table is trained and stored. Seeded: the same table every time on one machine.

What trains a state's value is the numbers it stood for, so a table for states of 16 bits would take two
hundred times what one for 8 bits takes, to gain less: those codes are computed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .codes import TABLE_STATE_BITS, table_name
from .viterbi import Bitshift, shortest_path
from .xor import xor_values

_COLUMNS = 1024
_PRIOR = 1.0  # numbers that the value a state begins with counts for


@dataclass(frozen=True)
class Plan:
    """How one table is trained: `rounds` of fresh Gaussian numbers, `rows` x 1024 in each."""

    num_bits: int
    state_bits: int
    rounds: int = 100
    rows: int = 32
    seed: int = 2406_11235


def plans() -> list[Plan]:
    """All tables that ship."""
    return [Plan(num_bits, state_bits) for state_bits in TABLE_STATE_BITS for num_bits in range(1, 5)]


def compute(plan: Plan) -> Tensor:
    """Half a table, float16 `[2^(L - 1)]`: the states whose top bit is 0. Later rounds count for more."""
    generator = torch.Generator().manual_seed(plan.seed)
    values = xor_values(plan.num_bits, plan.state_bits)
    counts, sums = torch.full_like(values, _PRIOR), values * _PRIOR
    for done in range(plan.rounds):
        x = torch.randn(plan.rows, _COLUMNS, generator=generator)
        states = shortest_path(Bitshift(values.float(), plan.num_bits), x).flatten().long()
        weight = (done + 1) / plan.rounds
        counts += weight * torch.bincount(states, minlength=len(values))
        sums += weight * torch.bincount(states, x.flatten().double(), minlength=len(values))
        values = (sums - sums.flip(0)) / (counts + counts.flip(0))
    return values[: len(values) // 2].half()


def digest(table: Tensor) -> str:
    """SHA-256 of a table's bytes."""
    return hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest()


def main(arguments: list[str]) -> int:
    """Train the tables named by `k,L` pairs (all when none is named) and add them to a file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = Path(arguments[0])
    wanted = [Plan(*map(int, pair.split(","))) for pair in arguments[1:]] or plans()
    tables: dict[str, Tensor] = {}
    facts: dict[str, dict[str, object]] = {}
    if path.exists():
        tables = load_file(path)
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads(file.metadata()["tables"])
    for plan in wanted:
        name = table_name(plan.num_bits, plan.state_bits)
        tables[name] = compute(plan)
        facts[name] = {**asdict(plan), "sha256": digest(tables[name])}
        save_file(tables, path, metadata={"tables": json.dumps(facts, sort_keys=True)})
        print(f"{name}: {facts[name]['sha256']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
