"""Find steps and offsets of represented inputs on calibration batches, for each value of an index where they
have a bank."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from ..runtime.bank import rows_of
from ..runtime.estimators.learned import Learned
from ..runtime.learned import unknown_steps
from ..runtime.learned_ops import start
from ..runtime.program import program_of
from .assignment import Assignment, assign, assigned
from .aten import argument_of
from .base import Fact, Keeps, Pass
from .facts import ASSIGNED
from .give_batches import BATCHES, batches_of
from .reach import Reach, note
from .sites import Site, sites

_SAMPLE = 1 << 15  # numbers of one input that steps are found on, for each value of an index

_Steps = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class CalibrateInputs(Pass):
    """Measure inputs whose steps are learned on calibration batches, before anything is trained.

    Forms that are not trained quantise with these steps from then on, whatever comes in, and training starts
    with them. What is measured are the inputs that the dense model has, all batches together: a step by the
    representation's observer, and where the grid moves a step and an offset together by the pass's own
    `observer`: `mse`, the range of least squared error, or `minmax`, all of it. With a bank every row is
    measured on the samples of its index; rows without any take those of the nearest row that has some.
    Inputs whose steps are not learned are left alone: they are measured anew for every batch.
    """

    observer: Literal["mse", "minmax"] = "mse"
    kind: Literal["calibrate_inputs"] = "calibrate_inputs"

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED, BATCHES})
    keeps: ClassVar[Keeps] = "shapes"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        found, wanted = list[Reach](), list[tuple[Site, Assignment]]()
        for site in sites(gm):
            assignment = assigned(site.weight)
            if assignment is None or assignment.input.is_dense:
                continue
            why = _why_not(gm, site, assignment)
            if why:
                found.append(Reach(site.path, False, why))
            else:
                wanted.append((site, assignment))
        watch = _Watch(gm, wanted)
        with torch.no_grad():
            for batch in batches_of(gm):
                watch.run(*batch)
        for site, assignment in wanted:
            steps = watch.steps(site, assignment, self.observer)
            assign(site.weight, replace(assignment, measured=steps))
            found.append(Reach(site.path, True, _said(assignment, watch.seen(site), steps)))
        note(gm, self.name, found)
        return bool(wanted)


def _why_not(gm: fx.GraphModule, site: Site, assignment: Assignment) -> str:
    if assignment.learned_input is None:
        return "its inputs are measured anew for every batch, for no estimator learns their steps"
    if site.source is None:
        return "it has no input"
    bank = assignment.bank
    if bank is not None and _placeholder(gm, bank.index) is None:
        return f"{bank.index!r} is no input of this graph"
    return ""


def _placeholder(gm: fx.GraphModule, name: str) -> fx.Node | None:
    inputs = (node for node in gm.graph.nodes if node.op == "placeholder")
    return next((node for node in inputs if argument_of(node) == name), None)


def _said(assignment: Assignment, seen: int, steps: _Steps) -> str:
    size = f"{min(steps[0]):.3g} to {max(steps[0]):.3g}" if len(steps[0]) > 1 else f"{steps[0][0]:.3g}"
    by = "" if assignment.bank is None else f" for {seen} of {assignment.bank.size} values of its index"
    return f"input steps {size}{by}"


@dataclass
class _Seen:
    """Batches of one input, by row; all in row 0 without a bank."""

    rows: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, row: int, numbers: Tensor) -> None:
        self.rows.setdefault(row, []).append(_thinned(numbers.detach().flatten()))

    def numbers(self, row: int) -> Tensor:
        return _thinned(torch.cat(self.rows[row])).unsqueeze(0)


class _Watch(fx.Interpreter):
    """Runs a graph and keeps a sample of what weights read."""

    def __init__(self, gm: fx.GraphModule, wanted: list[tuple[Site, Assignment]]) -> None:
        super().__init__(gm)
        self.found: dict[tuple[fx.Node, Any], _Seen] = {}
        self.at: dict[fx.Node, list[tuple[Site, Assignment]]] = {}
        for site, assignment in wanted:
            self.at.setdefault(site.node, []).append((site, assignment))
        self.indices: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node, its input kept first."""
        if n.op == "placeholder":
            value = super().run_node(n)
            self.indices[argument_of(n)] = value
            return value
        added = set[tuple[fx.Node, Any]]()
        for site, assignment in self.at.get(n, ()):
            key = _key(site, assignment)
            if key not in added and key not in self.done:
                self._add(key, assignment, self.env[key[0]])
                added.add(key)
        self.done |= added
        return super().run_node(n)

    def run(self, *args: Any, **options: Any) -> Any:
        """The output of the graph; an input that several weights read is kept once."""
        self.done: set[tuple[fx.Node, Any]] = set()
        return super().run(*args, **options)

    def _add(self, key: tuple[fx.Node, Any], assignment: Assignment, x: Tensor) -> None:
        seen, bank = self.found.setdefault(key, _Seen()), assignment.bank
        if bank is None:
            return seen.add(0, x)
        rows = rows_of(torch.as_tensor(self.indices[bank.index], device=x.device), bank, x)
        for row in sorted(set(rows.tolist())):
            seen.add(row, x[rows == row])

    def seen(self, site: Site) -> int:
        """How many rows of a bank have samples."""
        return max((len(s.rows) for (source, _), s in self.found.items() if source is site.source), default=0)

    def steps(self, site: Site, assignment: Assignment, observer: str) -> _Steps:
        """Steps and offsets of a weight's input, for all rows."""
        learned, seen = assignment.learned_input, self.found[_key(site, assignment)]
        assert learned is not None
        known = sorted(seen.rows)
        lines = dict(
            zip(known, (_line(assignment, learned, seen.numbers(r), observer) for r in known), strict=True)
        )
        size = 1 if assignment.bank is None else assignment.bank.size
        nearest = [lines[min(known, key=lambda k: (abs(k - row), k))] for row in range(size)]
        return tuple(n[0] for n in nearest), tuple(n[1] for n in nearest) if learned.moves else ()


def _key(site: Site, assignment: Assignment) -> tuple[fx.Node, Any]:
    """What weights measure alike: they read the same tensor in the same representation."""
    assert site.source is not None
    return site.source, (assignment.input, assignment.input_estimators, assignment.bank)


def _line(assignment: Assignment, learned: Learned, numbers: Tensor, observer: str) -> tuple[float, float]:
    """The step and the offset that learning starts with on these numbers."""
    levels = learned.grid_of(assignment.input).levels.levels
    if learned.moves and observer == "minmax":
        low, high = (float(end) for end in numbers.aminmax())
        width = (high - low) / (levels[-1] - levels[0]) or 1.0
        return width, low - width * levels[0]
    step = unknown_steps(numbers).detach()
    offset = step.clone() if learned.moves else step.new_empty(0)
    program = program_of(assignment.input, assignment.input_estimators)
    start(program, numbers, step, offset, torch.zeros((), dtype=torch.uint8), True)
    return float(learned.step(step, levels[-1])), float(offset) if learned.moves else 0.0


def _thinned(numbers: Tensor) -> Tensor:
    """Every so many of them, so that there are not too many."""
    return numbers[:: -(-numbers.numel() // _SAMPLE)] if numbers.numel() > _SAMPLE else numbers
