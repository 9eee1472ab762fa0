"""What may stand in a slot of a rule (its weights, its input activations), and what makes no sense there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from ..runtime.stages import Quantize, Stage

Slot = Literal["weights", "input_activations", "output_activations", "grad_output", "kv_cache"]
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
    if slot != "weights" and not stage.dynamic:
        reason = f"scales of {slot} are computed from each tensor; fixed ones would need calibration"
        yield "dynamic", reason, "write dynamic: true"
