"""Build one form of a captured model: run passes over its graphs and put the results in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..passes.allocate import Allocate
from ..passes.assign import Assign
from ..passes.assignment import Assignment
from ..passes.base import Pass
from ..passes.canonicalize import Canonicalize
from ..passes.decode import Decode
from ..passes.fuse import Fuse
from ..passes.learned import input_steps, output_tables, weight_steps
from ..passes.pack import Pack, stored
from ..passes.part import guard, part_of
from ..passes.pipeline import Pipeline, Step
from ..passes.project import Project
from ..passes.project_cache import ProjectCache
from ..passes.stand_in import Reading, readings_of, stand_in
from ..runtime.attending import attending
from ..runtime.bank import called_with
from ..runtime.gradient import Backward
from ..runtime.holders import Holders
from ..runtime.packed import Packed
from ..runtime.projection import Project as Projection
from ..runtime.structure import bake
from .caches import Cache
from .capture import Captured, Fragment
from .example import Example
from .reads import Computed

Read = Callable[[Holders, nn.Parameter | Packed, Assignment], Reading | None]
"""In the new model, what reading a weight as an attribute gives; None when it is the attribute itself."""


@dataclass(frozen=True)
class Recipe:
    """What makes a form: the passes that are run on each graph, given the new model; what each parameter and
    buffer of the original becomes; what reading a weight outside of graphs gives; and whether an assignment
    asks anything of a graph at all. Weights that parametrizations compute stay computed where it `trains`."""

    passes: Callable[[Holders], tuple[Pass, ...]]
    tensors: Callable[[Tensor], Tensor]
    read: Read
    concerns: Callable[[Assignment], bool]
    trains: bool = False


def _projected(holders: Holders, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading:
    projection = assignment.project_weight("")
    if isinstance(weight, nn.Parameter):  # what is computed learns nothing
        weight_steps(holders, weight, assignment)
        input_steps(holders, weight, assignment)
        output_tables(holders, weight, assignment)
    return Reading.of(assignment, None if projection.is_idle else projection, weight)


def _stored(holders: Holders, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading | None:
    """Packed weights do what is to be done by themselves; around dense ones inputs and outputs are
    projected."""
    if assignment.weight.is_dense:
        return _decoded(holders, weight, assignment)
    if not isinstance(weight, Packed):
        holders.pack(weight, stored(weight, assignment))
    return None


def _decoded(holders: Holders, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading | None:
    forward = replace(assignment.slots, backward=Backward())
    return None if forward.is_dense else Reading(None, forward)


def trainable(assignments: Mapping[int, Assignment] = MappingProxyType({})) -> Recipe:
    """Copies that train where the original does, projected; keys are ids of the original's parameters."""

    def tensors(tensor: Tensor) -> Tensor:
        given = assignments.get(id(tensor))
        latent = None if given is None else given.latent
        copied = (tensor if latent is None else latent.start(tensor)).detach().clone()
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

    return Recipe(
        lambda holders: (Project(holders),), tensors, _projected, lambda a: not a.is_dense, trains=True
    )


def packed(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Stored fields of represented `values`, frozen copies of the others; keys are ids of the original's."""

    def tensors(tensor: Tensor) -> Tensor:
        value = values[id(tensor)].detach()  # a represented one is encoded, never written to, and let go
        return _frozen(tensor, value if id(tensor) in represented else value.clone())

    return Recipe(lambda holders: (Pack(holders), Fuse()), tensors, _stored, lambda a: not a.is_dense)


def reference(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Frozen projections of represented `values`, frozen copies of the others; keys as for `packed`."""

    def tensors(tensor: Tensor) -> Tensor:
        value, assignment = values[id(tensor)].detach(), represented.get(id(tensor))
        return _frozen(tensor, (value if assignment is None else decoded(value, assignment)).clone())

    return Recipe(
        lambda holders: (Decode(),),
        tensors,
        _decoded,
        lambda a: not replace(a.slots, backward=Backward()).is_dense,
    )


def decoded(value: Tensor, assignment: Assignment) -> Tensor:
    """What a weight is once it was stored."""
    if assignment.code is not None:
        matrix = assignment.weight.decode(assignment.code)
    else:
        matrix = assignment.weight.project(assignment.arrangement.matrix(value))
    return assignment.arrangement.restore(matrix, tuple(value.shape))


def _frozen(original: Tensor, value: Tensor) -> Tensor:
    """A parameter for a parameter, a buffer for a buffer, without gradients."""
    return nn.Parameter(value, requires_grad=False) if isinstance(original, nn.Parameter) else value


@dataclass
class Builder:
    """Builds a form from the assignments of a model by parameter path; a tied one is under all of its paths.

    `ruled` is what rules gave those weights that a budget chose for. `caches` are the modules that attend
    with represented keys and values, `example` is one of the whole model, or None. `steps` is the record of
    the passes that were run.
    """

    captured: Captured
    assignments: Mapping[str, Assignment]
    ruled: Mapping[str, Assignment] = field(default_factory=dict)
    caches: tuple[Cache, ...] = ()
    example: Example | None = None
    steps: list[Step] = field(default_factory=list)

    def build(self, recipe: Recipe) -> nn.Module:
        """A new model by the recipe. Modules of whose graph nothing is asked stay the user's own."""
        root = self.captured.copy(recipe.tensors)
        computed = [c for path, c in self.captured.computed.items() if self._asks(path)]
        for each in computed:
            owner = root.get_submodule(each.owner)
            if not recipe.trains and is_parametrized(owner):
                bake(owner)
        holders = Holders(root)
        for each in computed:
            self._build_computed(holders, each, recipe)
        for fragment in self.captured.fragments:
            assignments = {p: a for p, a in self._within(fragment).items() if recipe.concerns(a)}
            caches = self._caches_in(fragment)
            if assignments or caches:
                passes = (*self._assigning(fragment, assignments), *recipe.passes(holders))
                self._build_part(holders, fragment, (*passes, ProjectCache(caches)) if caches else passes)
        for path in self.captured.reads:
            self._build_reader(holders, path, recipe)
        for cache in self.caches:
            if cache.graph is None:
                module = holders.root.get_submodule(cache.path)
                holders.replace(module, attending(module, cache.projection))
        return holders.root

    def _assigning(self, fragment: Fragment, assignments: Mapping[str, Assignment]) -> tuple[Pass, ...]:
        """The passes that say what weights are given: rules, and then a budget."""
        prefix = f"{fragment.path}." if fragment.path else ""
        ruled = {path: self.ruled[prefix + path] for path in assignments if prefix + path in self.ruled}
        choice = {path: assignments[path] for path in ruled}
        return (Assign({**assignments, **ruled}), *([Allocate(choice)] if choice else []))

    def _asks(self, path: str) -> bool:
        """Whether anything is asked for a weight."""
        assignment = self.assignments.get(path)
        return assignment is not None and not assignment.is_dense

    def _caches_in(self, fragment: Fragment) -> dict[str, Projection]:
        """The projections of keys and values in a fragment, by module path within it."""
        found = [cache for cache in self.caches if cache.graph == fragment.path]
        return {cache.path[len(fragment.path) :].lstrip("."): cache.projection for cache in found}

    def _build_part(self, holders: Holders, fragment: Fragment, passes: tuple[Pass, ...]) -> None:
        """Rewrite one fragment and put it in its place."""
        module = holders.root.get_submodule(fragment.path)
        part = part_of(module, copy.deepcopy(fragment.graph))
        example = self.example if not fragment.path else None
        probe = example.args if example is not None and not example.kwargs else None
        indices = {index for a in self.assignments.values() for index in a.indices} if probe else ()
        with called_with(self.captured.root, indices, probe or ()) if indices else nullcontext():
            self.steps += Pipeline((Canonicalize(), *passes)).run(part, part=fragment.path, probe=probe)
        guard(part)
        holds_weights = any("." not in path for path in self._within(fragment))
        alone = fragment.alone and fragment.path != "" and holds_weights
        holders.replace(module, stand_in(module, readings_of(part), part) if alone else part)

    def _build_reader(self, holders: Holders, path: str, recipe: Recipe) -> None:
        """Have one module that runs as Python read its weights as the recipe says."""
        module = holders.root.get_submodule(path)
        readings = {}
        for name in self.captured.reads[path]:
            assignment = self.assignments.get(f"{path}.{name}" if path else name)
            if assignment is None or not recipe.concerns(assignment):
                continue
            reading = recipe.read(holders, getattr(module, name), assignment)
            if reading is not None:
                if reading.projection is not None:
                    reading.projection.path = name
                readings[name] = reading
        if readings:
            holders.replace(module, stand_in(module, readings))

    def _build_computed(self, holders: Holders, computed: Computed, recipe: Recipe) -> None:
        """Represent a weight that parametrizations compute: project what they give, or store it instead."""
        assignment = self.assignments[computed.path]
        owner: Any = holders.root.get_submodule(computed.owner)
        if recipe.trains:
            owner.parametrizations[computed.name].append(_Last(_projected(holders, owner, assignment)))
            return
        parameter = owner._parameters[computed.name]
        if recipe.read is not _stored:
            parameter.data = decoded(parameter.data, assignment)
        reading = recipe.read(holders, parameter, assignment)
        if reading is not None:
            holders.replace(owner, stand_in(owner, {computed.name: reading}))

    def _within(self, fragment: Fragment) -> dict[str, Assignment]:
        """The assignments of the weights in a fragment's graph, by their paths in the fragment."""
        prefix = f"{fragment.path}." if fragment.path else ""
        return {p: self.assignments[prefix + p] for p in fragment.weights if prefix + p in self.assignments}


class _Last(nn.Module):
    """The last of a weight's parametrizations: its projection."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is read."""
        return self.reading(weight, self.training)

    def held(self) -> list[nn.Module]:
        """Its projection, which `modules()` does not show."""
        return [*self.reading.held()]
