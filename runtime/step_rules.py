"""What a model asks for around the steps of its optimiser: scheduled numbers, and rules such as RigL."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import nn

from .code_usage import code_usages
from .errors import RequestError
from .estimators.step_rule import Beside, Stepping, StepRule
from .projection import latent_parameters, projections
from .representation import Representation
from .schedules import advance

_ATTACHED = "rhoc_steps"  # the attribute of an optimiser that holds what was attached to it


@final
class Steps:
    """The steps of one model under one optimiser. Made by `attach`.

    `step` is the 0-based number of the step about to be taken. Hooks of the optimiser count; a loop that
    skips steps says which one comes by `at`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, step: int) -> None:
        self.model, self.steps, self.step = model, steps, step
        self.rules: list[Stepping] = []
        self.at(step)  # sparsity at this step decides what is active at first
        ruled = [(n, w, p) for n, w, p in latent_parameters(model) if p.step_rules and w.requires_grad]
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        found: dict[tuple[StepRule, Representation], list[Stepping]] = {}
        for path, weight, projection in ruled:
            for rule in projection.step_rules if id(weight) in trained else ():
                working = rule.on(weight, projection, optimizer, Beside(model, path))
                found.setdefault((rule, projection.representation), []).append(working)
        self.rules += [one for (rule, _), each in found.items() for one in rule.joined(each)]
        self.rules += code_usages(model, trained)
        if ruled and not self.rules:
            raise RequestError(
                f"the optimiser trains no weight under {ruled[0][2].step_rules[0].kind!r}",
                where="attach",
                advice="make it of the parameters of this trainable form",
            )
        for projection in projections(model):
            projection.stepped = True
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )
        self.at(step)

    def at(self, step: int) -> None:
        """Set everything for the 0-based `step`; from step `steps` on, numbers are as they are declared."""
        self.step = step
        advance(self.model, step, self.steps)
        for rule in self.rules:
            rule.at(step, self.steps)

    def detach(self) -> None:
        """Let the optimiser step as before. Numbers stay as they are."""
        for handle in self._handles:
            handle.remove()
        for rule in self.rules:
            rule.detach()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, *_: Any) -> None:
        for rule in self.rules:
            rule.before()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, *_: Any) -> None:
        for rule in self.rules:
            rule.after()
        self.at(self.step + 1)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, step: int = 0) -> Steps:
    """Have schedules and step rules of a trainable form follow the steps of an optimiser.

    To be called once before training, in any loop of one's own; a loop that was resumed says by `step` how
    many it has taken. Attaching again takes the place of what was attached for this model. A model without
    schedules and rules trains as ever.

    Raises RequestError for a number of steps that is not positive, or a step beyond it.
    """
    if steps < 1 or not 0 <= step <= steps:
        raise RequestError(
            f"step {step} of {steps} is none of a training",
            where="attach",
            advice="give the number of all optimiser steps, and how many were taken before",
        )
    earlier: list[Steps] = vars(optimizer).setdefault(_ATTACHED, [])
    for other in [each for each in earlier if each.model is model]:
        other.detach()
        earlier.remove(other)
    earlier.append(Steps(model, optimizer, steps, step))
    return earlier[-1]


__all__ = ["StepRule", "Steps", "attach"]
