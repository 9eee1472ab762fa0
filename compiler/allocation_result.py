"""What an allocation chose: a representation for every layer, and how good the choice is proven to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..passes.assignment import Assignment
from .candidates import Candidate, Dropped, Layer


@dataclass(frozen=True)
class Choice:
    """What one layer was given. `value` is that of the measure; `tied` names the layers that choose alike."""

    layer: Layer
    candidate: Candidate
    value: float
    nbytes: int
    milliseconds: float | None = None
    tied: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, all fields included, over the number of weights."""
        return 8 * self.nbytes / self.layer.weights

    def to_document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "path": self.layer.path,
            "shape": list(self.layer.shape),
            "count": self.layer.count,
            "candidate": self.candidate.name,
            "representation": str(self.candidate.assignment.weight),
            "input_representation": str(self.candidate.assignment.input),
            "bits_per_weight": self.bits_per_weight,
            "bytes": self.nbytes,
            "milliseconds": self.milliseconds,
            "value": self.value,
            "tied": list(self.tied),
        }


@dataclass(frozen=True)
class Limit:
    """One limit of the budget in its own unit, and what the choice uses of it."""

    name: str
    limit: float
    used: float

    @property
    def slack(self) -> float:
        """What is left."""
        return self.limit - self.used

    def __str__(self) -> str:
        share = f" ({self.used / self.limit:.1%})" if self.limit else ""
        return f"{_amount(self.used)} of {_amount(self.limit)} {self.name.replace('_', ' ')}{share}"


@dataclass(frozen=True)
class AllocationResult:
    """The best choice, and how good it is proven to be.

    `objective` is the sum of the chosen values, no choice within the budget passes `bound`, and `gap` is what
    is left between the two, relative to the objective: 0 but for rounding when `status` is "optimal"; else
    the time was up.
    """

    measure: str
    maximise: bool
    source: str
    status: str
    choices: tuple[Choice, ...]
    objective: float
    bound: float
    gap: float
    nodes: int
    limits: tuple[Limit, ...]
    dropped: tuple[Dropped, ...]

    @property
    def assignments(self) -> dict[str, Assignment]:
        """What each weight becomes by the path of its parameter, for the passes Allocate and Assign."""
        return {choice.layer.path: choice.candidate.assignment for choice in self.choices}

    @property
    def nbytes(self) -> int:
        """Stored bytes of all layers."""
        return sum(choice.nbytes for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights of all layers."""
        return 8 * self.nbytes / sum(choice.layer.weights for choice in self.choices)

    @property
    def summary(self) -> str:
        """How many weights each candidate was chosen for, in the order of their names."""
        counts: Counter[str] = Counter()
        for choice in self.choices:
            counts[choice.candidate.name] += choice.layer.count
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))

    def to_document(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "measure": self.measure,
            "maximise": self.maximise,
            "source": self.source,
            "status": self.status,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "nodes": self.nodes,
            "total_bytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "limits": [asdict(limit) | {"slack": limit.slack} for limit in self.limits],
            "choices": [choice.to_document() for choice in self.choices],
            "dropped": [asdict(dropped) for dropped in self.dropped],
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A table as text: a head, then one row per layer."""
        head = ("path", "shape", "candidate", "bits", "bytes", self.measure)
        return [head, *(_row(choice) for choice in self.choices)]

    def __str__(self) -> str:
        table = self.rows()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        of = f" ({self.source})" if self.source else ""
        proof = f"{self.status}: bound {self.bound:.6g}, gap {self.gap:.3g}"
        lines.append(f"{self.measure}{of} {self.objective:.6g}, {proof}")
        lines += [str(limit) for limit in self.limits]
        return "\n".join([*lines, *_dropped_text(self.dropped)])


def _row(choice: Choice) -> tuple[str, ...]:
    layer = choice.layer
    times = f" x {layer.count}" if layer.count > 1 else ""
    bits, value = f"{choice.bits_per_weight:.3f}", f"{choice.value:.4g}"
    return layer.path, layer.shape_text + times, choice.candidate.name, bits, f"{choice.nbytes:,}", value


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4f}"


def _dropped_text(dropped: Sequence[Dropped]) -> list[str]:
    """A line for each reason, with the layers that it concerns."""
    by_reason: dict[Dropped, list[str]] = {}
    for each in dropped:
        by_reason.setdefault(replace(each, path=""), []).append(each.path)
    return [f"no {key.candidate} for {', '.join(p)}: {key.reason}" for key, p in by_reason.items()]
