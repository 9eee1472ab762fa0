"""What may stand in a slot of a rule (its weights, its input activations), and what makes no sense there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from ..runtime.estimators import Estimator
from ..runtime.estimators.code_fields import CodeFields
from ..runtime.estimators.eigen_cushion import eigen_cushion_of
from ..runtime.estimators.fix_values import beside_names
from ..runtime.estimators.freeze_codes import freeze_codes_of
from ..runtime.estimators.kept_tables import KeptTables, kept_tables_of
from ..runtime.estimators.learned import Learned
from ..runtime.stages import Quantize, Stage

Slot = Literal[
    "weights",
    "input_activations",
    "output_activations",
    "grad_output",
    "kv_cache",
    "backward_weights",
    "backward_inputs",
]
SLOTS: tuple[Slot, ...] = get_args(Slot)

Fault = tuple[tuple[str | int, ...], str, str]  # where inside the chain, what is wrong, what to do


def chain_faults(stages: tuple[Stage, ...], slot: Slot) -> Iterator[Fault]:
    """Everything in a chain that makes no sense in its slot, although each stage alone is well formed."""
    for position, stage in enumerate(stages):
        if stage.hands_on != "numbers" and position < len(stages) - 1:
            follower = stages[position + 1]
            what = "integer codes and not numbers" if stage.hands_on == "codes" else "nothing"
            message = f"{follower.kind} cannot follow {stage.kind}, which hands on {what}"
            yield (position + 1,), message, f"move {follower.kind} before {stage.kind}"
        if isinstance(stage, Quantize):
            for key, message, hint in _quantize_faults(stage, slot):
                yield (position, key), message, hint


def _quantize_faults(stage: Quantize, slot: Slot) -> Iterator[tuple[str, str, str]]:
    if slot == "weights" and stage.strategy == "token":
        yield (
            "strategy",
            "a weight has no tokens to share a scale",
            "use strategy: channel, one scale per row",
        )
    if slot != "weights" and stage.strategy == "channel":
        reason = (
            "an activation's channels lie across tokens, and a matmul cannot take their scales out of its sum"
        )
        yield "strategy", reason, "use strategy: token, one scale per token"
    if slot == "weights" and stage.dynamic:
        yield "dynamic", "weights are stored with their scales, so nothing about them is dynamic", "remove it"
    if slot == "weights" and stage.offset is not None:
        yield "offset", "the grid of a weight is moved by a zero point", "use symmetric: false"
    if slot != "weights":
        yield from _fixed_faults(stage, slot)


def _fixed_faults(stage: Quantize, slot: Slot) -> Iterator[tuple[str, str, str]]:
    """What is wrong with how long scales of a tensor that is no weight last."""
    if stage.step is not None:
        if stage.dynamic:
            yield "dynamic", "a step that is given is not measured again", "remove it"
    elif not stage.dynamic and slot != "input_activations":  # whose step may be learned, see `learned_faults`
        yield "dynamic", _MEASURED.format(slot), "write dynamic: true"


_MEASURED = "scales of {} are computed from each tensor; fixed ones would need calibration"


def learned_faults(
    stages: tuple[Stage, ...], estimators: tuple[Estimator, ...], slot: Slot
) -> Iterator[Fault]:
    """What makes no sense in a slot for steps that are learned, or are not although they seem to be.

    Positions are those of the slot, or of its estimators behind "estimator".
    """
    learned = next((e for e in estimators if isinstance(e, Learned)), None)
    if not stages:
        return
    yield from _fields_faults(estimators, slot)
    others = ", ".join(e.kind for e in estimators if e is not learned and not e.apart)
    if learned is not None and others:
        yield ("estimator", slot), f"{learned.kind!r} says alone how gradients pass", f"leave out {others}"
    kept = kept_tables_of(estimators)
    if kept is not None:
        yield from _tables_faults(kept, estimators, slot)
    if learned is not None and slot not in ("weights", "input_activations"):
        message = f"{learned.kind!r} learns steps of weights and of input_activations, not of {slot}"
        yield ("estimator", slot), message, "use ste or trust there"
    elif slot == "input_activations":
        for position, stage in enumerate(stages):
            if isinstance(stage, Quantize) and stage.step is None:
                for key, message, hint in _input_faults(stage, learned):
                    yield (slot, position, key), message, hint


def _tables_faults(kept: KeptTables, estimators: tuple[Estimator, ...], slot: Slot) -> Iterator[Fault]:
    """The same for tables that are parameters of the model."""
    if slot != "output_activations":
        hint = f"write output_activations: codebook, and estimator: {{output_activations: {kept.kind}}}"
        yield ("estimator", slot), f"{kept.kind!r} trains tables of output_activations, not of {slot}", hint
    if len(estimators) > 1:
        others = ", ".join(e.kind for e in estimators if e is not kept)
        yield ("estimator", slot), f"{kept.kind!r} says alone how gradients pass", f"leave out {others}"


def _fields_faults(estimators: tuple[Estimator, ...], slot: Slot) -> Iterator[Fault]:
    """The same for fields of codes that are trained."""
    try:
        freeze_codes_of(estimators)
        eigen_cushion_of(estimators)
        beside = beside_names(estimators)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        yield ("estimator", slot), message, hint
        beside = ()
    if beside and slot != "weights":
        hint = f"give each its own: estimator: {{weights: {estimators[0].kind}, {slot}: ste}}"
        yield ("estimator", slot), f"{estimators[0].kind!r} is for weights, not for {slot}", hint
    found = next((e for e in estimators if isinstance(e, CodeFields)), None)
    if found is None:
        return
    if len(estimators) > 1:
        others = ", ".join(e.kind for e in estimators if e is not found)
        yield ("estimator", slot), f"{found.kind!r} says alone how gradients pass", f"leave out {others}"
    if slot != "weights":
        hint = f"give each its own: estimator: {{weights: {found.kind}, {slot}: ste}}"
        yield ("estimator", slot), f"{found.kind!r} trains what weights are encoded as, not {slot}", hint


def _input_faults(stage: Quantize, learned: Learned | None) -> Iterator[tuple[str, str, str]]:
    if learned is None:
        if not stage.dynamic:
            hint = "write dynamic: true"
            if stage.strategy == "tensor":
                hint += ", or learn one: estimator: {input_activations: lsq}"
            yield "dynamic", _MEASURED.format("input_activations"), hint
    elif stage.strategy != "tensor":
        message = f"{learned.kind!r} learns one step of all inputs, not one for each {stage.strategy}"
        yield "strategy", message, "use strategy: tensor"
    elif stage.dynamic:
        message = f"the step that {learned.kind!r} learns is the same for every input"
        yield "dynamic", message, "write dynamic: false"
