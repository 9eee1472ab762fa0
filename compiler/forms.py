"""Build one form of a captured model: run passes over its graphs and put the results in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..passes.assign import Assign
from ..passes.assignment import Assignment
from ..passes.base import Pass
from ..passes.canonicalize import Canonicalize
from ..passes.decode import Decode
from ..passes.fuse import Fuse
from ..passes.pack import Pack, stored
from ..passes.part import guard, part_of
from ..passes.pipeline import Pipeline, Step
from ..passes.project import Project
from ..passes.project_cache import ProjectCache, attending
from ..passes.stand_in import Reading, readings_of, stand_in
from ..runtime.packed import Packed, pack_parameter
from ..runtime.projection import Project as Projection
from ..runtime.representation import Representation
from ..runtime.structure import bake
from .caches import Cache
from .capture import Captured, Fragment
from .example import Example
from .reads import Computed

Read = Callable[[nn.Module, nn.Parameter | Packed, Assignment], Reading | None]
"""In the new model, what reading a weight as an attribute gives; None when it is the attribute itself."""


@dataclass(frozen=True)
class Recipe:
    """What makes a form: the passes that are run on each graph, given the new model; what each parameter and
    buffer of the original becomes; what reading a weight outside of graphs gives; and whether an assignment
    asks anything of a graph at all. Weights that parametrizations compute stay computed where it `trains`."""

    passes: Callable[[nn.Module], tuple[Pass, ...]]
    tensors: Callable[[Tensor], Tensor]
    read: Read
    concerns: Callable[[Assignment], bool]
    trains: bool = False


def _projected(root: nn.Module, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading:
    projection = Projection(
        assignment.weight, assignment.weight_estimators, arrangement=assignment.arrangement
    )
    return Reading(None if assignment.weight.is_dense else projection, assignment.slots)


def _stored(root: nn.Module, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading | None:
    """Packed weights do what is to be done by themselves; around dense ones inputs and outputs are
    projected."""
    if assignment.weight.is_dense:
        return _decoded(root, weight, assignment)
    if not isinstance(weight, Packed):
        pack_parameter(root, weight, stored(weight, assignment))
    return None


def _decoded(root: nn.Module, weight: nn.Parameter | Packed, assignment: Assignment) -> Reading | None:
    forward = changed(assignment.slots, grad_output=Representation())
    return None if forward.is_dense else Reading(None, forward)


def trainable() -> Recipe:
    """Copies that train where the original does, projected."""

    def tensors(tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

    return Recipe(lambda root: (Project(),), tensors, _projected, lambda a: not a.is_dense, trains=True)


def packed(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Stored fields of represented `values`, frozen copies of the others; keys are ids of the original's."""

    def tensors(tensor: Tensor) -> Tensor:
        value = values[id(tensor)].detach()  # a represented one is encoded, never written to, and let go
        return _frozen(tensor, value if id(tensor) in represented else value.clone())

    return Recipe(lambda root: (Pack(root), Fuse()), tensors, _stored, lambda a: not a.is_dense)


def reference(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Frozen projections of represented `values`, frozen copies of the others; keys as for `packed`."""

    def tensors(tensor: Tensor) -> Tensor:
        value, assignment = values[id(tensor)].detach(), represented.get(id(tensor))
        return _frozen(tensor, (value if assignment is None else decoded(value, assignment)).clone())

    return Recipe(
        lambda root: (Decode(),), tensors, _decoded, lambda a: not (a.input.is_dense and a.output.is_dense)
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

    `caches` are the modules that attend with represented keys and values, `example` is one of the whole
    model, or None. `steps` is the record of the passes that were run.
    """

    captured: Captured
    assignments: Mapping[str, Assignment]
    caches: tuple[Cache, ...] = ()
    example: Example | None = None
    steps: list[Step] = field(default_factory=list)

    def build(self, recipe: Recipe) -> nn.Module:
        """A new model by the recipe. Modules of whose graph nothing is asked stay the user's own."""
        root = self.captured.copy(recipe.tensors)
        for path, computed in self.captured.computed.items():
            assignment = self.assignments.get(path)
            if assignment is not None and not assignment.is_dense:
                root = self._build_computed(root, computed, assignment, recipe)
        for fragment in self.captured.fragments:
            assignments = {p: a for p, a in self._within(fragment).items() if recipe.concerns(a)}
            caches = self._caches_in(fragment)
            if assignments or caches:
                passes = (Assign(assignments), *recipe.passes(root))
                root = self._build_part(root, fragment, (*passes, ProjectCache(caches)) if caches else passes)
        for path in self.captured.reads:
            root = self._build_reader(root, path, recipe)
        for cache in self.caches:
            if cache.graph is None:
                module = root.get_submodule(cache.path)
                root = replace(root, module, attending(module, cache.projection))
        return root

    def _caches_in(self, fragment: Fragment) -> dict[str, Projection]:
        """The projections of keys and values in a fragment, by module path within it."""
        found = [cache for cache in self.caches if cache.graph == fragment.path]
        return {cache.path[len(fragment.path) :].lstrip("."): cache.projection for cache in found}

    def _build_part(self, root: nn.Module, fragment: Fragment, passes: tuple[Pass, ...]) -> nn.Module:
        """The model with one fragment rewritten."""
        module = root.get_submodule(fragment.path)
        part = part_of(module, copy.deepcopy(fragment.graph))
        example = self.example if not fragment.path else None
        probe = example.args if example is not None and not example.kwargs else None
        self.steps += Pipeline((Canonicalize(), *passes)).run(part, part=fragment.path, probe=probe)
        guard(part)
        holds_weights = any("." not in path for path in self._within(fragment))
        alone = fragment.alone and fragment.path != "" and holds_weights
        return replace(root, module, stand_in(module, readings_of(part), part) if alone else part)

    def _build_reader(self, root: nn.Module, path: str, recipe: Recipe) -> nn.Module:
        """The model with one module that runs as Python reading its weights as the recipe says."""
        module = root.get_submodule(path)
        readings = {}
        for name in self.captured.reads[path]:
            assignment = self.assignments.get(f"{path}.{name}" if path else name)
            if assignment is None or not recipe.concerns(assignment):
                continue
            reading = recipe.read(root, getattr(module, name), assignment)
            if reading is not None:
                readings[name] = reading
        return replace(root, module, stand_in(module, readings)) if readings else root

    def _build_computed(
        self, root: nn.Module, computed: Computed, assignment: Assignment, recipe: Recipe
    ) -> nn.Module:
        """The model with a weight that parametrizations compute represented: what they give is projected, or
        stored instead."""
        owner: Any = root.get_submodule(computed.owner)
        if recipe.trains:
            owner.parametrizations[computed.name].append(_Last(_projected(root, owner, assignment)))
            return root
        if is_parametrized(owner):
            bake(owner)
        parameter = owner._parameters[computed.name]
        if recipe.read is not _stored:
            parameter.data = decoded(parameter.data, assignment)
        reading = recipe.read(root, parameter, assignment)
        return root if reading is None else replace(root, owner, stand_in(owner, {computed.name: reading}))

    def _within(self, fragment: Fragment) -> dict[str, Assignment]:
        """The assignments of the weights in a fragment's graph, by their paths in the fragment."""
        prefix = f"{fragment.path}." if fragment.path else ""
        inside = {p.removeprefix(prefix): a for p, a in self.assignments.items() if p.startswith(prefix)}
        return {path: a for path, a in inside.items() if path in fragment.weights}


class _Last(nn.Module):
    """The last of a weight's parametrizations: its projection."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is read."""
        return self.reading(weight)


def replace(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`root` with one module exchanged wherever it is held, in plain lists and dictionaries too."""
    if old is root:
        return new
    for module in list(root.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
        for name, value in vars(module).items():
            _replace_in(value, old, new) if not name.startswith("_") else None
    return root


def _replace_in(value: object, old: nn.Module, new: nn.Module) -> None:
    if isinstance(value, list):
        value[:] = [new if item is old else item for item in value]
    elif isinstance(value, dict):
        value.update({key: new for key, item in value.items() if item is old})
