"""What a comparison knows of a format: what laws know, its stored bits, and the widths of its products."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ... import specs
from ...runtime.errors import RequestError
from ...runtime.marchenko_pastur import REFERENCE_SHAPE
from ...runtime.representation import Representation
from ...runtime.stages import Quantize
from ...runtime.stages.quantize_options import grid_of
from ..query import Format, format_of
from ..rules import Rule
from ..spec import Spec, is_text, load_spec
from .voice import Voice

WIDE = 16  # bits of an operand that is not quantised, or that is decoded before it is multiplied
_NUMBERS = re.compile(r"midrise|midtread|twos|unsigned|e\d+m\d+\w*")  # grids of numbers that units multiply


@dataclass(frozen=True)
class Widths:
    """Bits of the wider operand of the three products of a linear layer.

    forward: inputs and weights; input_gradient: output gradients and weights; weight_gradient: output
    gradients and inputs.
    """

    forward: int = WIDE
    input_gradient: int = WIDE
    weight_gradient: int = WIDE


@dataclass(frozen=True)
class Contender:
    """A format in a comparison.

    name: what the answer calls it, and a fit its runs; bits: stored bits per weight of a large matrix, None
    for a name of runs of which no spec is known; spec: None likewise.
    """

    name: str
    format: Format
    bits: float | None = None
    input_bits: float | None = None
    widths: Widths = Widths()
    spec: Spec | None = None

    @property
    def borrowed(self) -> bool:
        """Whether a part of it belongs to a family that no published fit has constants of."""
        return any(part.borrowed for part in self.format.parts)


def contender(question: str, voice: Voice | None = None, told: Collection[str] = ()) -> Contender:
    """The format that is meant: a shipped name, a file, a text form, or NAME=SPEC, where runs say NAME.

    With a voice, a name that it has runs of, or that is `told` by columns, needs no spec: only its bits are
    then unknown. Raises RequestError for what is neither.
    """
    name, _, source = question.partition("=") if not is_text(question) else (question, "", "")
    if source:
        found = contender(source)
        return replace(found, name=name, format=replace(found.format, name=name))
    unknown = specs.resolve(question) is None and not is_text(question) and not Path(question).is_file()
    if voice is not None and unknown and (question in voice.names or question in told):
        return Contender(question, Format(question))
    spec = load_spec(question)
    if not spec.rules:
        raise RequestError("this spec has no rules", where=question, advice="name a format of weights")
    rule = spec.rules[0]
    label = question if voice is not None and question in voice.names else _label(spec, question)
    return Contender(
        name=label,
        format=replace(format_of(spec), name=label),
        bits=rule.weight_representation.bits_per_weight(REFERENCE_SHAPE),
        input_bits=rule.input_representation.bits_per_weight(REFERENCE_SHAPE),
        widths=widths_of(rule),
        spec=spec,
    )


def contenders(
    questions: Sequence[str], voice: Voice | None = None, told: Collection[str] = ()
) -> dict[str, Contender]:
    """Formats by name. Raises RequestError for one that is named twice."""
    found: dict[str, Contender] = {}
    for question in questions:
        each = contender(question, voice, told)
        if each.name in found:
            raise RequestError(f"{each.name!r} is named twice", advice="name each format once")
        found[each.name] = each
    return found


def widths_of(rule: Rule) -> Widths:
    """Widths of the products that training under a rule computes."""
    weights, inputs = _width(rule.weight_representation), _width(rule.input_representation)
    backward = rule.backward
    gradient = _width(backward.grad_output)
    again = (backward.weights, weights), (backward.inputs, inputs)
    second, third = (own if chain.is_dense else _width(chain) for chain, own in again)
    return Widths(max(weights, inputs), max(gradient, second), max(gradient, third))


def _width(chain: Representation) -> int:
    """Bits of the numbers that are multiplied: those of the last grid, where units multiply such numbers."""
    last = chain.unwrapped[-1] if chain.stages else None
    if not isinstance(last, Quantize):
        return WIDE
    grid = grid_of(last)
    return last.num_bits if isinstance(grid, str) and _NUMBERS.fullmatch(grid) else WIDE


def _label(spec: Spec, question: str) -> str:
    return question if is_text(question) else spec.name
