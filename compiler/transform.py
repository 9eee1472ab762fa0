"""Passes over the whole model before any form is made of it: another model that computes the same.

Rotations, equalisation and folding change the values of parameters and what weights were given, never what
the user's code does. They run on graphs of a private copy, whose tensors the graphs share; afterwards the
copy itself is run, and must give what the model gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..passes.assign import Assign
from ..passes.assignment import Assignment, assigned
from ..passes.base import Fact, Pass, PipelineError
from ..passes.catalog import establishing
from ..passes.exchange import carry_over
from ..passes.facts import CANONICAL
from ..passes.give_batches import GiveBatches
from ..passes.pipeline import Pipeline, Step, close, roundings
from ..passes.reach import Reach, reaches
from ..passes.record_ranges import RecordRanges
from ..passes.sites import attribute, parameter_nodes, parameter_of, sites
from ..runtime.errors import RequestError
from ..runtime.structure import undisturbed
from .capture import Captured, Refusal
from .example import Example
from .graphs import PartGraph, calls_of, part_graphs
from .whole import tensors_in


@dataclass(frozen=True)
class Reached:
    """What one pass did on one graph: `part` is the module path of the graph, '' for the whole model."""

    part: str
    name: str
    reach: Reach

    @property
    def path(self) -> str:
        """The parameter's path in the model."""
        return f"{self.part}.{self.reach.path}" if self.part else self.reach.path


@dataclass(frozen=True)
class Transformed:
    """A copy of a model that computes the same, what its weights are given now by path, and what was done."""

    root: nn.Module
    assignments: Mapping[str, Assignment]
    steps: tuple[Step, ...]
    reached: tuple[Reached, ...]
    refusals: tuple[Refusal, ...]


def transform(
    captured: Captured,
    assignments: Mapping[str, Assignment],
    passes: Sequence[Pass],
    example: Example | None,
    batches: Sequence[Example] = (),
) -> Transformed:
    """Run passes over a copy of a model.

    Args:
        assignments: what each weight was given, by path.
        batches: calibration inputs for the passes that look at activations; the example when there are none.

    Raises:
        RequestError: there is no example to make a graph with, or no part of the model has a graph.
        PipelineError: the copy computes something else than the model, though every pass kept its promise.
    """
    if example is None:
        raise RequestError(
            f"{passes[0].name} looks across layers, and the graph for that is made with example inputs",
            advice="give example_inputs",
        )
    root = captured.copy(_copied)
    before = _outputs(root, example)
    parts, refusals = part_graphs(root, example)
    if not parts:
        raise RequestError(
            f"no part of the model gives a graph: {refusals[0]}", advice="compile without passes"
        )
    given = dict(assignments)
    steps: list[Step] = []
    reached: list[Reached] = []
    for part in parts:
        inputs = _inputs(root, part, batches or (example,))
        steps += _run(part, given, complete(passes, inputs))
        carry_over(part.graph, root.get_submodule(part.path))
        for name, found in reaches(part.graph).items():
            reached += [Reached(part.path, name, reach) for reach in found]
    reached += [
        Reached("", each.name, Reach(path, False, why))
        for path, why in _unread(root, given, parts, refusals)
        for each in passes
    ]
    reached += _unseen(parts, given)
    if all(each.keeps != "shapes" for each in passes):
        rounding = max(roundings(part.graph) for part in parts)
        _check(before, _outputs(root, example), passes, rounding)
    return Transformed(root, given, tuple(steps), tuple(reached), tuple(refusals))


def _inputs(root: nn.Module, part: PartGraph, batches: Sequence[Example]) -> list[list[Tensor]]:
    """What a graph is run on, batch by batch. Modules inside may be called with other shapes each time:
    their graphs take those that they were made for."""
    calls = [call.tensors for call in calls_of(root, part.path, batches)]
    if not part.path:
        return calls
    expected = part.example.tensors
    alike = [call for call in calls if [t.shape for t in call] == [t.shape for t in expected]]
    return alike or [expected]


def _unread(
    root: nn.Module,
    assignments: Mapping[str, Assignment],
    parts: Sequence[PartGraph],
    refusals: Sequence[Refusal],
) -> Iterator[tuple[str, str]]:
    """The represented weights that no operation of any graph reads, and why."""
    read = {id(parameter_of(part.graph, site.weight)) for part in parts for site in sites(part.graph)}
    seen = {id(parameter_of(part.graph, node)) for part in parts for node in parameter_nodes(part.graph)}
    first: dict[int, str] = {}
    for path, assignment in assignments.items():
        if not assignment.is_dense:
            first.setdefault(id(attribute(root, path)), path)  # a tied one is spoken of once
    for found, path in first.items():
        if found in read:
            continue
        if found in seen:
            yield path, "no operation that passes understand reads it"
            continue
        above = [each for each in refusals if not each.path or f"{path}.".startswith(f"{each.path}.")]
        why = max(above, key=lambda each: len(each.path)).reason if above else "the example does not use it"
        yield path, f"no graph reads it: {why}"


def phases(passes: Sequence[Pass]) -> tuple[list[Pass], list[Pass]]:
    """Passes that keep values, which run before representations are chosen, and those that round to them."""
    exact = [each for each in passes if each.keeps != "shapes"]
    return exact, [each for each in passes if each.keeps == "shapes"]


def complete(passes: Sequence[Pass], inputs: Sequence[Sequence[Tensor]] = ()) -> tuple[Pass, ...]:
    """Passes with those added, by default options, that establish what they require.

    Passes that look at activations do so on `inputs`, the tensors that a graph takes, batch by batch.
    """
    found = list(passes)
    while True:
        held = frozenset[Fact]().union(*(each.establishes for each in found), _GIVEN)
        missing = [fact for each in found for fact in sorted(each.requires, key=str) if fact not in held]
        if not missing:
            return tuple(found)
        added = establishing(missing[0])
        found.append(added(inputs) if added in (RecordRanges, GiveBatches) else added())


_GIVEN = frozenset({CANONICAL}) | Assign.establishes


def order(passes: Sequence[Pass], assignments: Mapping[str, Assignment] | None = None) -> Pipeline:
    """The pipeline of passes on a graph of the whole model."""
    return Pipeline((Assign(assignments or {}), *passes), given=frozenset({CANONICAL}))


def _run(part: PartGraph, assignments: dict[str, Assignment], passes: Sequence[Pass]) -> tuple[Step, ...]:
    """Run passes on one graph; `assignments` become what they are afterwards."""
    prefix = f"{part.path}." if part.path else ""
    inside = {p.removeprefix(prefix): a for p, a in assignments.items() if p.startswith(prefix)}
    pipeline = order(passes, inside)
    with torch.no_grad():
        steps = pipeline.run(part.graph, part=part.path, probe=tuple(part.example.tensors))
    for node in parameter_nodes(part.graph):
        found = assigned(node)
        path = prefix + str(node.target)
        if found is not None and path in assignments:
            assignments[path] = found
    return steps


def _unseen(parts: Sequence[PartGraph], assignments: Mapping[str, Assignment]) -> list[Reached]:
    """Represented weights that no operation of a graph reads: passes cannot look at them."""
    seen = {f"{p.path}.{site.path}" if p.path else site.path for p in parts for site in sites(p.graph)}
    what = "no operation of the graphs that passes look at reads it"
    wanted = [path for path, given in assignments.items() if not given.is_dense and path not in seen]
    return [Reached("", "passes", Reach(path, False, what)) for path in wanted]


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), undisturbed(model):
        return tensors_in(example.run(model))


def _check(before: list[Tensor], after: list[Tensor], passes: Sequence[Pass], rounding: float) -> None:
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if not close(old, new, rounding):
            names = ", ".join(each.name for each in passes)
            largest = float((old.double() - new.double()).abs().max())
            raise PipelineError(
                f"after {names} the model gives another output {number} than before (largest difference "
                f"{largest:.3g}), though its graph does not: something reads a changed parameter unseen"
            )


def _copied(tensor: Tensor) -> Tensor:
    copied: Any = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
