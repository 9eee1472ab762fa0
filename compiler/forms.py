"""Build one form of a captured model: run passes over its graphs and put the results in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..passes.assign import Assign
from ..passes.assignment import Assignment
from ..passes.base import Pass
from ..passes.canonicalize import Canonicalize
from ..passes.decode import Decode
from ..passes.pack import Pack
from ..passes.part import guard, part_of, stand_in
from ..passes.pipeline import Pipeline, Step
from ..passes.project import Project
from .capture import Captured, Fragment

Probe = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """What makes a form: the passes that are run on each graph, given the new model; what each parameter and
    buffer of the original becomes; and whether an assignment asks anything of a graph at all."""

    passes: Callable[[nn.Module], tuple[Pass, ...]]
    tensors: Callable[[Tensor], Tensor]
    concerns: Callable[[Assignment], bool]


def trainable() -> Recipe:
    """Copies that train where the original does, projected."""

    def tensors(tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

    return Recipe(lambda root: (Project(),), tensors, lambda assignment: not assignment.is_dense)


def packed(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Stored fields of represented `values`, frozen copies of the others; keys are ids of the original's."""

    def tensors(tensor: Tensor) -> Tensor:
        value = values[id(tensor)].detach()  # a represented one is encoded, never written to, and let go
        return _frozen(tensor, value if id(tensor) in represented else value.clone())

    return Recipe(lambda root: (Pack(root),), tensors, lambda assignment: not assignment.is_dense)


def reference(values: Mapping[int, Tensor], represented: Mapping[int, Assignment]) -> Recipe:
    """Frozen projections of represented `values`, frozen copies of the others; keys as for `packed`."""

    def tensors(tensor: Tensor) -> Tensor:
        value, assignment = values[id(tensor)].detach(), represented.get(id(tensor))
        return _frozen(tensor, (value if assignment is None else assignment.weight.project(value)).clone())

    return Recipe(lambda root: (Decode(),), tensors, lambda assignment: not assignment.input.is_dense)


def _frozen(original: Tensor, value: Tensor) -> Tensor:
    """A parameter for a parameter, a buffer for a buffer, without gradients."""
    return nn.Parameter(value, requires_grad=False) if isinstance(original, nn.Parameter) else value


@dataclass
class Builder:
    """Builds a form from the assignments of a model by parameter path; a tied one is under all of its paths.

    `probe` are example inputs of the whole model, or None. `steps` is the record of the passes that were run.
    """

    captured: Captured
    assignments: Mapping[str, Assignment]
    probe: Probe | None = None
    steps: list[Step] = field(default_factory=list)

    def build(self, recipe: Recipe) -> nn.Module:
        """A new model by the recipe. Modules of whose graph nothing is asked stay the user's own."""
        root = self.captured.copy(recipe.tensors)
        for fragment in self.captured.fragments:
            assignments = {p: a for p, a in self._within(fragment).items() if recipe.concerns(a)}
            if assignments:
                root = self._build_part(root, fragment, (Assign(assignments), *recipe.passes(root)))
        return root

    def _build_part(self, root: nn.Module, fragment: Fragment, passes: tuple[Pass, ...]) -> nn.Module:
        """The model with one fragment rewritten."""
        module = root.get_submodule(fragment.path)
        part = part_of(module, copy.deepcopy(fragment.graph))
        probe = self.probe if not fragment.path else None
        self.steps += Pipeline((Canonicalize(), *passes)).run(part, part=fragment.path, probe=probe)
        guard(part)
        holds_weights = any("." not in path for path in self._within(fragment))
        alone = fragment.alone and fragment.path != "" and holds_weights
        return replace(root, module, stand_in(module, part) if alone else part)

    def _within(self, fragment: Fragment) -> dict[str, Assignment]:
        """The assignments of the weights in a fragment's graph, by their paths in the fragment."""
        prefix = f"{fragment.path}." if fragment.path else ""
        inside = {p.removeprefix(prefix): a for p, a in self.assignments.items() if p.startswith(prefix)}
        return {path: a for path, a in inside.items() if path in fragment.weights}


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
