"""Model and spec to a compiled model with three forms that agree: trainable, packed and reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..passes.assignment import Assignment
from ..passes.pipeline import Step
from ..runtime.checkpoint import save_packed
from ..runtime.errors import RequestError
from . import forms
from .capture import Captured, Probe, capture
from .decide import Decision, decide
from .explain import Explanation, explain
from .hints import did_you_mean
from .sharing import shared
from .spec import Spec, load_spec
from .trained import Trained, latent_values


class Compiled:
    """A model with a decision for each of its parameters. Made by `compile`; forms are built when asked for.

    It refers to the tensors of the model it was made from and copies them into every form, so a form can be
    trained or moved without the model or another form noticing.
    """

    def __init__(
        self, spec: Spec, captured: Captured, decisions: tuple[Decision, ...], probe: Probe | None = None
    ) -> None:
        self.spec, self.captured, self.decisions, self._probe = spec, captured, decisions, probe
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
        return self._build(forms.trainable())

    def packed(self, trained: Trained | None = None) -> nn.Module:
        """The packed form, in eval(): stored fields and kernels; no represented weight is kept dense.

        Args:
            trained: a train form (or its `state_dict`) whose weights to use; by default the original model's.

        Raises:
            RequestError: `trained` is of another model, or a weight to be encoded is not finite.
        """
        return self._build(forms.packed(self._values(trained), self._represented())).eval()

    def reference(self, trained: Trained | None = None) -> nn.Module:
        """The reference form, in eval(): decoded weights in plain torch; inputs are still projected.

        Arguments and errors as for `packed`.
        """
        return self._build(forms.reference(self._values(trained), self._represented())).eval()

    def listing(self, name: str) -> str:
        """The graphs as they are after a pass, in whichever form has it, one line per operation.

        Raises RequestError when no pass is called `name` (upper and lower case are alike).
        """
        recipes: dict[str, Callable[[], forms.Recipe]] = {
            "canonicalize": forms.trainable,
            "assign": forms.trainable,
            "project": forms.trainable,
            "pack": lambda: forms.packed(self._values(None), self._represented()),
            "decode": lambda: forms.reference(self._values(None), self._represented()),
        }
        wanted = name.lower()
        if wanted not in recipes:
            raise RequestError(f"no pass is called {name!r}", advice=did_you_mean(name, recipes))
        builder = self._builder()
        with torch.no_grad():
            builder.build(replace(recipes[wanted](), concerns=lambda assignment: True))
        return "\n\n".join(
            f"# {step.part}\n{step.listing}" if step.part else step.listing
            for step in builder.steps
            if step.name.lower() == wanted
        )

    def explain(self) -> Explanation:
        """What every parameter became, or why it stayed dense."""
        return explain(self.spec, self.captured, self.decisions)

    def save(self, directory: str | Path, trained: Trained | None = None) -> None:
        """Write the packed form to a directory, for `runtime.load.load_packed`. `trained` as for `packed`.

        Raises RequestError when the directory holds something else, WorkError when it cannot be written.
        """
        save_packed(directory, self.packed(trained), self.spec.to_document(), self.spec.digest)

    def _build(self, recipe: forms.Recipe) -> nn.Module:
        builder = self._builder()
        with torch.no_grad():
            root = builder.build(recipe)
        self._trace += builder.steps
        return root

    def _builder(self) -> forms.Builder:
        assignments = {path: d.assignment for d in self._fitted for path in d.held.paths}
        return forms.Builder(self.captured, assignments, self._probe)

    def _values(self, trained: Trained | None) -> dict[int, Tensor]:
        """What forms are made of, by the id of the original's tensors; what is to be encoded is finite."""
        values = latent_values(self.captured.root, trained)
        self._check_finite(values)
        return values

    def _represented(self) -> dict[int, Assignment]:
        """The assignments of represented weights by the identity of the original's parameter."""
        return {id(d.held.tensor): d.assignment for d in self._fitted if not d.assignment.weight.is_dense}

    def _check_finite(self, values: Mapping[int, Tensor]) -> None:
        for decision in self.decisions:
            value = values[id(decision.held.tensor)]
            if decision.assignment.weight.is_dense:
                continue
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
    model: nn.Module, spec: Spec | str | Path | Mapping[str, Any], example_inputs: Probe | None = None
) -> Compiled:
    """Decide for every parameter of a model what a spec makes of it.

    Args:
        model: any module; it is not changed.
        spec: a spec, the name of a shipped one, the path of a YAML file, or a mapping.
        example_inputs: a tuple of positional arguments of the model. With them the capture and what passes
            promise are checked on real numbers, and listings show shapes.

    Raises:
        RequestError: the spec is wrong, a target matches nothing, or a shape cannot be represented.
    """
    loaded = load_spec(spec)
    captured = capture(model, example_inputs)
    return Compiled(loaded, captured, decide(captured, loaded), example_inputs)
