"""Model and spec to a compiled model with three forms that agree: trainable, packed and reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..passes.assignment import Assignment
from ..passes.base import Pass
from ..passes.pipeline import Step
from ..runtime.bank import give_index, signature_with
from ..runtime.checkpoint import save_packed
from ..runtime.errors import RequestError
from ..runtime.gradient import Backward
from . import forms
from .allocation_result import AllocationResult
from .budgeted import allocated
from .caches import Cache, decide_caches
from .capture import Captured, capture
from .decide import Decision, decide, held_parameters
from .example import Example, example_of, own_example
from .explain import Explanation, explain
from .fixed import fixed
from .hints import did_you_mean
from .learned import learned_names, settled
from .sharing import led, shared
from .siblings import grouped
from .spec import Spec, load_spec
from .trained import Trained, latent_values, state_of
from .transform import Transformed, phases, transform

Inputs = tuple[Any, ...] | Mapping[str, Any] | Example
"""A call of a model: positional arguments, or keyword arguments by name."""

Assignments = dict[int, Assignment]
"""What becomes of parameters, by the id of the original's."""


class Compiled:
    """A model with a decision for each of its parameters. Made by `compile`; forms are built when asked for.

    It refers to the tensors of the model it was made from and copies them into every form, so a form can be
    trained or moved without the model or another form noticing.
    """

    def __init__(
        self,
        spec: Spec,
        captured: Captured,
        decisions: tuple[Decision, ...],
        caches: tuple[Cache, ...] = (),
        example: Example | None = None,
        transformed: tuple[Transformed, ...] = (),
        allocation: AllocationResult | None = None,
    ) -> None:
        self.caches, self.transformed, self.allocation = caches, transformed, allocation
        self.spec, self.captured, self.decisions, self._example = spec, captured, decisions, example
        self._trace: list[Step] = []

    @cached_property
    def _fitted(self) -> tuple[Decision, ...]:
        """The decisions with codebooks that weights share fitted to all of them."""
        return shared(self.decisions)

    @property
    def trace(self) -> tuple[Step, ...]:
        """What every pass did to every graph, in the order in which forms were asked for."""
        return tuple(self._trace)

    @property
    def capture(self) -> dict[str, list[dict[str, str]]]:
        """What was captured and by which strategy, and what was not and why; '' is the whole model."""
        captured, refused = self.captured.fragments, self.captured.refusals
        return {
            "captured": [{"path": fragment.path, "strategy": fragment.strategy} for fragment in captured],
            "refused": [{"path": refusal.path, "reason": refusal.reason} for refusal in refused],
        }

    def trainable(self) -> nn.Module:
        """The train form: latent weights, projected on every use; gradients pass by the spec's estimators.

        It is the user's model still: `state_dict` keys and values, signature, `train()` and `eval()`, class.
        """
        given = {id(d.held.tensor): d.assignment for d in self.decisions}
        return self._build(forms.trainable(given), self._given())

    def packed(self, trained: Trained | None = None) -> nn.Module:
        """The packed form, in eval(): stored fields and kernels; no represented weight is kept dense.

        Args:
            trained: a train form (or its `state_dict`) whose weights to use; by default the original model's.

        Raises:
            RequestError: `trained` is of another model, or a weight to be encoded is not finite.
        """
        values, assignments = self._settled(trained)
        return self._build(forms.packed(values, _represented(assignments)), assignments).eval()

    def reference(self, trained: Trained | None = None) -> nn.Module:
        """The reference form, in eval(): decoded weights in plain torch; inputs are still projected.

        Arguments and errors as for `packed`.
        """
        values, assignments = self._settled(trained)
        return self._build(forms.reference(values, _represented(assignments)), assignments).eval()

    def shown(self, name: str) -> tuple[Step, ...]:
        """What the pass of a name did, graph by graph: over the whole model, or in whichever form has it.

        Raises RequestError when no pass is called `name`; upper and lower case are alike, and `fold_norms` is
        `FoldNorms`.
        """

        kinds: dict[str, Callable[..., forms.Recipe]] = {
            "canonicalize": forms.trainable,
            "assign": forms.trainable,
            "allocate": forms.trainable,
            "project": forms.trainable,
            "pack": forms.packed,
            "fuse": forms.packed,
            "decode": forms.reference,
        }
        wanted = name.lower().replace("_", "")
        before = [step for transformed in self.transformed for step in transformed.steps]
        steps = [step for step in before if step.name.lower() == wanted]
        if not steps and wanted not in kinds:
            known = list(dict.fromkeys([*(_spelled(step.name) for step in before), *kinds]))
            raise RequestError(f"no pass is called {name!r}", advice=did_you_mean(name, known))
        if wanted in kinds:
            make = kinds[wanted]
            if make is forms.trainable:
                recipe, assignments = make(), self._given()
            else:
                values, assignments = self._settled(None)
                recipe = make(values, _represented(assignments))
            builder = self._builder(assignments)
            with torch.no_grad():
                builder.build(replace(recipe, concerns=lambda assignment: True))
            steps += [step for step in builder.steps if step.name.lower() == wanted]
        return tuple(steps)

    def listing(self, name: str) -> str:
        """The graphs as they are after a pass, one line per operation. Errors as for `shown`."""
        return "\n\n".join(
            f"# {step.part}\n{step.listing}" if step.part else step.listing for step in self.shown(name)
        )

    def explain(self) -> Explanation:
        """What every parameter became, or why it stayed dense."""
        return explain(
            self.spec, self.captured, self.decisions, self.caches, self.transformed, self.allocation
        )

    def save(self, directory: str | Path, trained: Trained | None = None) -> None:
        """Write the packed form to a directory, for `runtime.load.load_packed`. `trained` as for `packed`.

        Raises RequestError when the directory holds something else, WorkError when it cannot be written.
        """
        packed, (_, assignments) = self.packed(trained), self._settled(trained)
        chosen = {d.held.path: assignments[id(d.held.tensor)] for d in self._fitted}
        around = {
            path: given.slots
            for path, given in chosen.items()
            if given.weight.is_dense and not replace(given.slots, backward=Backward()).is_dense
        }
        caches = {cache.path: cache.rule.representation("kv_cache") for cache in self.caches}
        save_packed(directory, packed, self.spec.to_document(), self.spec.digest, around, caches)

    def _build(self, recipe: forms.Recipe, assignments: Assignments) -> nn.Module:
        builder = self._builder(assignments)
        with torch.no_grad():
            root = builder.build(recipe)
        self._trace += builder.steps
        indices = {index for assignment in assignments.values() for index in assignment.indices}
        return give_index(root, self.captured.root, indices)

    def _builder(self, chosen: Assignments) -> forms.Builder:
        assignments = {path: chosen[id(d.held.tensor)] for d in self._fitted for path in d.held.paths}
        ruled = {path: d.ruled for d in self._fitted if d.ruled is not None for path in d.held.paths}
        return forms.Builder(self.captured, assignments, ruled, self.caches, self._example)

    def _given(self) -> Assignments:
        """The assignments of a form that trains, by the id of the original's parameters."""
        return {id(d.held.tensor): d.assignment for d in self._fitted}

    def _settled(self, trained: Trained | None) -> tuple[dict[int, Tensor], Assignments]:
        """The values of a form that does not train, and its assignments; keys as for `_given`."""
        state = state_of(trained)
        values = self._values(state)
        found = {}
        for d in fixed(self._fitted, values, state):
            value = values.get(id(d.held.tensor), d.held.tensor)
            found[id(d.held.tensor)] = settled(d, _code(d.assignment, state is None), state, value)
        return values, found

    def _values(self, trained: Mapping[str, Tensor] | None) -> dict[int, Tensor]:
        """What forms are made of, by the id of the original's tensors; what is to be encoded is finite."""
        learned = {path: name for d in self.decisions for path, name in learned_names(d).items()}
        values = latent_values(self.captured.root, trained, learned)
        for decision in self.decisions if trained is not None else ():
            latent, key = decision.assignment.latent, id(decision.held.tensor)
            if latent is not None and key in values:
                values[key] = latent.weight(values[key].detach())
        self._check_finite(values)
        return values

    def _check_finite(self, values: Mapping[int, Tensor]) -> None:
        for decision in self.decisions:
            if decision.assignment.weight.is_dense:
                continue
            value = values.get(id(decision.held.tensor), decision.held.tensor)
            if value.is_meta:
                advice = "build the model on a real device; explain() needs no numbers"
                raise RequestError(
                    "on the meta device there are no numbers", where=decision.held.path, advice=advice
                )
            if not bool(torch.isfinite(value).all()):
                count = int((~torch.isfinite(value)).sum())
                raise RequestError(
                    f"{count} of {value.numel()} numbers are NaN or infinite, and cannot be encoded",
                    where=decision.held.path,
                    advice="train from finite weights, or leave this tensor out with `ignore`",
                )


def compile(
    model: nn.Module,
    spec: Spec | str | Path | Mapping[str, Any],
    example_inputs: Inputs | None = None,
    *,
    calibration: Sequence[Inputs] = (),
    whole: bool = True,
) -> Compiled:
    """Decide for every parameter of a model what a spec makes of it.

    Args:
        model: any module; it is not changed.
        spec: a spec, the name of a shipped one, the path of a YAML file, or a mapping.
        example_inputs: a tuple of positional arguments of the model, or a mapping of keyword arguments. With
            them the capture and what passes promise are checked on real numbers, listings show shapes, and
            weights are found that only running code shows (expert weights, for one). Passes need them; they
            take what the model itself offers (`example_inputs`, `dummy_inputs`) where none are given.
        calibration: inputs of the model, batch by batch, for passes that look at activations; the example
            inputs when there are none.
        whole: capture modules whole where that is safe, so that operations share what they can. Without,
        every
            module stays callable on its own and takes hooks after compiling.

    Raises:
        RequestError: the spec is wrong, a target matches nothing, or a shape cannot be represented.
    """
    loaded = load_spec(spec)
    example = own_example(model) if example_inputs is None and (loaded.passes or loaded.budget) else None
    example = example if example_inputs is None else example_of(example_inputs)
    batches = [example_of(batch) for batch in calibration]
    captured = capture(model, example, whole=whole)
    decisions = decide(captured, loaded)
    signature_with(captured.root, {index for d in decisions for index in d.assignment.indices})
    done: list[Transformed] = []

    def run(passes: Sequence[Pass]) -> tuple[Captured, tuple[Decision, ...]]:
        given = {path: d.assignment for d in decisions for path in d.held.paths}
        done.append(transform(captured, given, passes, example, batches))
        again = capture(done[-1].root, example, whole=whole)
        before = {d.held.path: d for d in decisions}
        held = [replace(before[h.path], held=h) for h in held_parameters(again)]
        return again, tuple(_redecided(decision, done[-1]) for decision in held)

    exact, rounding = phases(loaded.passes)
    if exact:
        captured, decisions = run(exact)
    allocation = None
    if loaded.budget is not None:
        decisions, allocation = allocated(decisions, loaded.budget, captured.root, example, batches)
    if rounding:
        captured, decisions = run(rounding)
    decisions = led(grouped(captured, decisions))
    caches = decide_caches(captured, loaded, example)
    return Compiled(loaded, captured, decisions, caches, example, tuple(done), allocation)


def _spelled(name: str) -> str:
    """`FoldNorms` as specs and commands write it: `fold_norms`."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _represented(assignments: Assignments) -> Assignments:
    """Those of represented weights."""
    return {key: assignment for key, assignment in assignments.items() if not assignment.weight.is_dense}


def _code(assignment: Assignment, keep: bool) -> Assignment:
    """An assignment with its calibrated code, or without: trained weights are not those that were
    calibrated."""
    return assignment if keep else replace(assignment, code=None)


def _redecided(decision: Decision, transformed: Transformed) -> Decision:
    """A decision with what passes made of it, and what they say."""
    paths = decision.held.paths
    assignment = transformed.assignments.get(decision.held.path, decision.assignment)
    said = [f"{r.name}: {r.reach.what}" for r in transformed.reached if r.path in paths]
    reason = "; ".join([*([decision.reason] if decision.reason else []), *said])
    return replace(decision, assignment=assignment, reason=reason)


def save(directory: str | Path, compiled: Compiled, trained: Trained | None = None) -> None:
    """Write the packed form of a compiled model to a directory; see `Compiled.save`."""
    compiled.save(directory, trained)
