"""Which representation each weight of a model gets under the budget of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..passes.assignment import Assignment
from ..passes.give_batches import GiveBatches
from ..passes.record_grams import RecordGrams, gram_of
from ..passes.sites import sites
from ..runtime.errors import RequestError
from ..runtime.schedule import Schedule
from .allocation import allocate
from .allocation_result import AllocationResult
from .budget import Budget
from .budget_rule import BudgetRule
from .candidates import Candidate, Layer
from .decide import LOOKUPS, Decision, channels_of
from .example import Example
from .graphs import calls_of, part_graphs
from .latency import read_latency
from .sensitivity import (
    Matrices,
    Sensitivity,
    effective_parameters,
    gaussian,
    output_error,
    relative_output_error,
    weight_error,
)
from .transform import order


def allocated(
    decisions: tuple[Decision, ...],
    rule: BudgetRule,
    root: nn.Module,
    example: Example | None,
    batches: Sequence[Example],
) -> tuple[tuple[Decision, ...], AllocationResult]:
    """The decisions with the best choice for every weight that a rule represents, and the choice.

    Raises RequestError when no choice is within the budget, or `output_error` has no inputs to look at.
    """
    chosen = [d for d in decisions if not d.assignment.weight.is_dense]
    layers = [_layer(d) for d in chosen]
    candidates = [Candidate.of(name) for name in rule.candidates]
    matrices = {d.held.path: d.held.arrangement.matrix(d.held.tensor.detach()) for d in chosen}
    limits = Budget.of(rule.limit)
    if limits.bytes is not None:
        kept = [d.held for d in decisions if d.assignment.weight.is_dense and not d.held.computes]
        rest = sum(held.tensor.nbytes for held in kept)
        if rest > limits.bytes:
            raise RequestError(
                f"what no rule represents takes {rest:,} bytes, and the budget is {limits.bytes:,}",
                where="budget",
                advice="represent more, or allow more",
            )
        limits = replace(limits, bytes=limits.bytes - rest)
    measure = _measure(rule, layers, candidates, matrices, root, example, batches, decisions)
    latency = None if rule.latency is None else read_latency(rule.latency)
    result = allocate(layers, candidates, limits, measure, latency=latency)
    found = result.assignments
    return tuple(_with(d, found.get(d.held.path), rule) for d in decisions), result


def _with(decision: Decision, assignment: Assignment | None, rule: BudgetRule) -> Decision:
    if assignment is None:
        return decision
    given = decision.assignment
    own = replace(
        given,
        weight=assignment.weight,
        weight_estimators=assignment.weight_estimators,
        latent=assignment.latent,
        schedules=_schedules(given, assignment),
        input=given.input if assignment.input.is_dense else assignment.input,
        input_estimators=given.input_estimators if assignment.input.is_dense else assignment.input_estimators,
    )
    note = f"allocated within {', '.join(map(str, rule.limit))}"
    return replace(
        decision, assignment=own, ruled=given, reason="; ".join(filter(None, [decision.reason, note]))
    )


def _schedules(given: Assignment, chosen: Assignment) -> tuple[Schedule, ...]:
    """Those of the weights, and of inputs where it has any, from what was chosen; the others stay."""
    taken = ("weights",) if chosen.input.is_dense else ("weights", "input_activations")
    kept = (s for s in given.schedules if not any(s.inside(slot) for slot in taken))
    return (*(s for s in chosen.schedules if any(s.inside(slot) for slot in taken)), *kept)


def _layer(decision: Decision) -> Layer:
    held = decision.held
    return Layer(
        held.path,
        held.matrix_shape,
        held.tensor.dtype,
        lookup=held.operation in LOOKUPS,
        arrangement=held.arrangement,
        channels=channels_of(held),
    )


def _measure(
    rule: BudgetRule,
    layers: Sequence[Layer],
    candidates: Sequence[Candidate],
    matrices: Matrices,
    root: nn.Module,
    example: Example | None,
    batches: Sequence[Example],
    decisions: Sequence[Decision],
) -> Sensitivity:
    if rule.measure == "gaussian":
        return gaussian(layers, candidates, matrices)
    if rule.measure == "effective_parameters":
        return effective_parameters(layers, candidates)
    if rule.measure == "weight_error":
        return weight_error(layers, candidates, matrices)
    measure = output_error if rule.measure == "output_error" else relative_output_error
    return measure(layers, candidates, matrices, _grams(root, example, batches, decisions))


def _grams(
    root: nn.Module, example: Example | None, batches: Sequence[Example], decisions: Sequence[Decision]
) -> dict[str, Tensor]:
    """Second moments of inputs by path of the weight."""
    if example is None:
        raise RequestError(
            "output_error is measured on inputs of the model", where="budget", advice="give example_inputs"
        )
    found: dict[str, Tensor] = {}
    for part in part_graphs(root, example)[0]:
        inputs = [call.tensors for call in calls_of(root, part.path, batches or (example,))]
        order((GiveBatches(inputs), RecordGrams())).run(part.graph, part=part.path)
        for site in sites(part.graph):
            gram = gram_of(site.node)
            path = f"{part.path}.{site.path}" if part.path else site.path
            if gram is not None:
                found.setdefault(path, gram)
    return found
