"""What a trained form has learned, as forms that learn nothing hold it: codes of weights, and given steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..passes.assignment import Assignment
from ..runtime.bank import Rows, nearest_known
from ..runtime.code import Code
from ..runtime.code_fields import FROZEN, code_of, field_names
from ..runtime.codec import Codec
from ..runtime.errors import RequestError
from ..runtime.estimators.learned import Learned
from ..runtime.learned import input_names, learned_code
from ..runtime.representation import Representation
from ..runtime.table_projection import Kept, first_tables
from ..runtime.vector_levels import levels_of
from .decide import Decision
from .trained import GIVE_TRAINED


def learned_names(decision: Decision) -> dict[str, str]:
    """By path in `state_dict`, the name of every parameter that a trainable form has beside a weight."""
    assignment = decision.assignment
    around = (*input_names(assignment.learned_input), *assignment.output_names)
    names = (*assignment.beside(decision.held.tensor), *around)
    return {f"{path}_{name}": name for path in decision.held.paths for name in names}


def settled(
    decision: Decision, assignment: Assignment, state: Mapping[str, Tensor] | None, value: Tensor
) -> Assignment:
    """An assignment that learns nothing: with what a trained form has learned, or as observers measure.

    `state` is what the trained form holds by path, None without one; `value` is the weight there.

    Raises:
        RequestError: steps that are not finite, or of another number than the weight has.
    """
    weight, inputs = assignment.learned_weight, assignment.learned_input
    found: dict[str, Tensor] = {}
    for path, name in learned_names(decision).items() if state is not None else ():
        assert state is not None
        found.setdefault(name, state[path].detach())
    if weight is not None and state is not None:
        path = f"{decision.held.path}_{weight.parameter}"
        code = _code(assignment, weight, value, _finite(found[weight.parameter], path), path)
        assignment = replace(assignment, code=code)
    fields, frozen = assignment.code_fields, found.get(FROZEN)
    if fields is not None and state is not None and (frozen is None or bool(frozen)):
        assignment = replace(assignment, code=_code_of_fields(decision, assignment, found))
    if inputs is not None:
        given = [found[name] for name in input_names(inputs)] if state is not None else []
        if not given and assignment.measured is not None:
            given = [torch.tensor(values) for values in assignment.measured if values]
            given[0] = inputs.start(given[0], inputs.grid_of(assignment.input).levels.levels[-1])
        assignment = replace(_with_given(assignment, inputs, given), input_estimators=(), bank=None)
    if assignment.output_names:
        assignment = _with_tables(decision, assignment, found if state is not None else None)
    trains = weight is not None or fields is not None or assignment.uncertain
    return replace(assignment, weight_estimators=()) if trains else assignment


def _with_tables(
    decision: Decision, assignment: Assignment, found: Mapping[str, Tensor] | None
) -> Assignment:
    """An assignment whose outputs are encoded with the tables found beside the weight, or those that training
    would begin with."""
    names, tensor = assignment.output_names, decision.held.tensor
    first = first_tables(assignment.output, assignment.output_estimators, tensor)
    given = first if found is None else [found[name] for name in names]
    for name, expected, own in zip(names, first, given, strict=True):
        if own.shape != expected.shape:
            raise RequestError(
                f"shape {tuple(own.shape)} trained, and {tuple(expected.shape)} here",
                where=f"{decision.held.path}_{name}",
                advice=GIVE_TRAINED,
            )
    kept = Kept.of(levels_of(assignment.output), given)
    codec = Codec.of(decision.held.path, assignment.output, kept.tables, kept.usage)
    return replace(assignment, codec=codec, output_estimators=())


def _with_given(assignment: Assignment, learned: Learned, given: Sequence[Tensor]) -> Assignment:
    """An assignment with steps (and offsets) of its inputs given; as it is where they are not known.

    Rows of a bank that are not known take the nearest that is.
    """
    if not given or bool(given[0].isnan().all()):
        return assignment
    if assignment.bank is None:
        return replace(assignment, input=with_given_step(assignment.input, learned, *given))
    top = learned.grid_of(assignment.input).levels.levels[-1]
    own = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in given]
    own = [each[nearest_known(given[0])] for each in own]
    steps = learned.step(own[0], top).abs().clamp_min(torch.finfo(own[0].dtype).tiny)
    numbers = [tuple(each.tolist()) for each in (steps, *own[1:])]
    rows = Rows(assignment.input, assignment.bank, *numbers)
    return replace(assignment, input=Representation(), rows=rows)


def _code(assignment: Assignment, learned: Learned, value: Tensor, steps: Tensor, where: str) -> Code:
    """The code of a weight under learned steps."""
    matrix = assignment.arrangement.matrix(value.detach())
    try:
        return learned_code(assignment.weight, learned, matrix, steps)
    except ValueError as error:
        raise RequestError(f"the trained model has {error}", where=where, advice=GIVE_TRAINED) from error


def _code_of_fields(decision: Decision, assignment: Assignment, found: Mapping[str, Tensor]) -> Code:
    """The code that trained fields are, by their names beside the weight."""
    path, tensor = decision.held.path, decision.held.tensor
    shape = assignment.arrangement.shape(tuple(tensor.shape))
    names = field_names(assignment.weight, shape, tensor.dtype)
    try:
        code = code_of(
            assignment.weight, {name: found[own] for name, own in names.items()}, shape, tensor.dtype
        )
    except ValueError as error:
        raise RequestError(f"the trained model has {error}", where=path, advice=GIVE_TRAINED) from error
    for name, field in code.named().items():
        if field.is_floating_point() and not bool(torch.isfinite(field).all()):
            raise RequestError(
                f"a trained field is NaN or infinite in {str(field.dtype)[6:]}, and nothing decodes with it",
                where=f"{path}_{names[name]}",
                advice="train with a lower learning rate, or from finite fields",
            )
    return code


def with_given_step(
    representation: Representation, learned: Learned, parameter: Tensor, offset: Tensor | None = None
) -> Representation:
    """A representation of inputs with what was learned written in its options."""
    stage = learned.grid_of(representation)
    own = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
    step = float(learned.step(own, stage.levels.levels[-1]).abs().clamp_min(torch.finfo(own.dtype).tiny))
    moved = None if offset is None else float(offset)
    return Representation((*representation.stages[:-1], replace(stage, step=step, offset=moved)))


def _finite(steps: Tensor, where: str) -> Tensor:
    if not bool(torch.isfinite(steps).all()):
        raise RequestError(
            "a learned step is NaN or infinite, and nothing can be encoded with it",
            where=where,
            advice="train with a lower learning rate, or from finite steps",
        )
    return steps
