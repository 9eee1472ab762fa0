"""Projections whose steps are parameters of the model, beside the weights that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .arrangement import PLAIN, Arrangement
from .code import Code
from .code_fields import FIELD
from .entering import rotate
from .estimators import ESTIMATORS, Estimator
from .estimators.gaussian_weights import DEVIATION
from .estimators.learned import Learned, learned_of
from .latents.base import Latent
from .learned_ops import KNOWN, PROJECT_LEARNED, START, LearnedProjection, forward, start
from .projection import Project
from .representation import Representation
from .schedule import Schedule
from .stage import Fields
from .stages.given_steps import GivenSteps, count_of, measured_steps
from .stages.precision import wide
from .table_projection import CODEBOOK, TEMPERATURE
from .view import View

_INPUT, _OFFSET = "input", "offset"


class LearnedProject(Project):
    """A projection under learned steps; see `estimators.learned.Learned`.

    It holds no parameter itself: it is called with them, since one step may serve several projections (of a
    tied weight, of a weight that is read in two places) and belongs to the weight. `starts`: those of a
    tensor whose numbers are not known when the model is built. They are NaN at first and are set by the first
    tensor seen in train(), under torch.compile too; until then tensors are measured. Before a model is copied
    to several devices run one batch in train(), so that all begin alike.
    """

    def __init__(
        self,
        representation: Representation,
        estimators: tuple[Estimator, ...],
        *,
        keep_rotated: bool = False,
        arrangement: Arrangement = PLAIN,
        dimension: int = -1,
        latent: Latent | None = None,
        schedules: tuple[Schedule, ...] = (),
        path: str = "",
        starts: bool = False,
    ) -> None:
        super().__init__(
            representation,
            estimators,
            keep_rotated=keep_rotated,
            arrangement=arrangement,
            dimension=dimension,
            latent=latent,
            schedules=schedules,
            path=path,
        )
        self.starts = starts
        # No buffer: it follows from the parameters, and stays on the CPU, where asking waits for nothing.
        self.known = torch.zeros((), dtype=torch.uint8) if starts else KNOWN

    def train(self, mode: bool = True) -> LearnedProject:
        """As ever; besides, whether steps are known is asked anew: others may have been loaded."""
        if self.starts:
            self.known.zero_()
        super().train(mode)
        return self

    def forward(self, x: Tensor, parameter: Tensor, offset: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The projection of `x`, same shape and dtype; still rotated with `keep_rotated`."""
        if self.latent is not None:
            x = self.latent.weight(x)
        if self.is_plain:
            return self.along(x, self.dimension, parameter, offset)
        matrix = self._learned(self.arrangement.matrix(x), parameter, offset)
        return self.arrangement.restore(matrix, tuple(x.shape))

    def along(
        self, x: Tensor, dimension: int, parameter: Tensor | None = None, offset: Tensor | None = None
    ) -> Tensor:
        """The projection along a dimension of `x`, counted from the end; a vector has one only."""
        if parameter is None:
            return super().along(x, dimension)
        dimension = max(dimension, -x.dim())
        moved = x if dimension == -1 else x.movedim(dimension, -1)
        return self._learned(moved, parameter, offset).movedim(-1, dimension)

    def _learned(self, x: Tensor, parameter: Tensor, offset: Tensor | None) -> Tensor:
        offset = x.new_empty(0) if offset is None else offset  # a new one: operators say they write to it
        if torch.compiler.is_compiling():
            return self._compiled(x, parameter, offset)
        program = self.program.at(self.values)
        if self.starts:
            with torch.no_grad():
                start(program, x, parameter, offset, self.known, self.training)
        if not torch.is_grad_enabled():
            return forward(program, x, parameter, offset, self.known, self.keep_rotated)
        given = (program, self.known, self.keep_rotated, self.starts)
        result: Tensor = LearnedProjection.apply(x, parameter, offset, *given)  # type: ignore[no-untyped-call]
        return result

    def _compiled(self, x: Tensor, parameter: Tensor, offset: Tensor) -> Tensor:
        key, known = self.key_of_program, self.known
        if self.starts:
            with torch.no_grad():
                START(x, parameter, offset, known, self.values, key, self.training)
            # Copies, since a step that is used twice is said to be written to twice.
            parameter, offset, known = parameter.clone(), offset.clone(), known.clone()
        rest = (known, self.values, key, self.keep_rotated, self.starts)
        result: Tensor = PROJECT_LEARNED(x, parameter, offset, *rest)
        return result


@dataclass(frozen=True)
class LearnedInput:
    """A projection of inputs with its parameters, for operations in code that is in no graph."""

    projection: LearnedProject
    parameters: tuple[Tensor, ...]

    def along(self, x: Tensor, dimension: int) -> Tensor:
        """The projection along a dimension of `x`, counted from the end."""
        return self.projection.along(x, dimension, *self.parameters)


def learns(representation: Representation, estimators: tuple[Estimator, ...]) -> Learned | None:
    """The estimator that learns the steps of a representation, None where nothing is learned."""
    return None if representation.is_dense else learned_of(estimators)


def weight_names(learned: Learned | None) -> tuple[str, ...]:
    """What follows the name of a weight, and `_`, in the names of the parameters that are its steps."""
    return () if learned is None else (learned.parameter,)


def input_names(learned: Learned | None) -> tuple[str, ...]:
    """The same for the parameters of the inputs of a weight's operation: a step, and maybe an offset."""
    if learned is None:
        return ()
    names = (learned.parameter, _OFFSET) if learned.moves else (learned.parameter,)
    return tuple(f"{_INPUT}_{name}" for name in names)


def learned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every learned step, end, offset, deviation and field of a trainable form, each once; no weights of it.

    They are known by their names: that of another parameter, and what `weight_names` and `input_names` give.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    suffixes = {name for e in ESTIMATORS if issubclass(e, Learned) for name in _names(e)} | {DEVIATION}
    seen: set[int] = set()
    for name, parameter in named.items():
        found = [name.removesuffix(f"_{suffix}") for suffix in suffixes]
        found += [name.rpartition(f"_{key}")[0] for key in (f"{FIELD}_", CODEBOOK, TEMPERATURE)]
        if id(parameter) not in seen and any(weight != name and weight in named for weight in found):
            seen.add(id(parameter))
            yield name, parameter


def _names(learned: type[Learned]) -> tuple[str, ...]:
    return learned.parameter, f"{_INPUT}_{learned.parameter}", f"{_INPUT}_{_OFFSET}"


def first_steps(
    representation: Representation,
    learned: Learned,
    matrix: Tensor,
    trained: bool = True,
    code: Code | None = None,
) -> nn.Parameter:
    """The parameter that a weight's steps start as: `[count]`, in float32 at least: bf16 would not move.

    `matrix` is the weight as the representation meets it. They are those of `code`, where calibration has
    chosen one, else as the observer measures them.
    """
    stage = learned.grid_of(representation)
    if code is not None:
        steps = stage._restored(code.fields[-1], tuple(matrix.shape)).reshape(-1).abs()
    else:
        steps = measured_steps(stage, rotate(matrix.detach(), representation.rotation))
    steps = steps.to(wide(matrix.dtype))
    return nn.Parameter(learned.start(steps, stage.levels.levels[-1]), requires_grad=trained)


def unknown_steps(like: Tensor, count: int = 1) -> nn.Parameter:
    """The parameter of steps of an input that was not seen yet; trained where the weight `like` is."""
    unknown = torch.full((count,), torch.nan, dtype=wide(like.dtype), device=like.device)
    return nn.Parameter(unknown, requires_grad=like.requires_grad)


def learned_code(representation: Representation, learned: Learned, matrix: Tensor, parameter: Tensor) -> Code:
    """The code of a weight under learned steps. Raises ValueError for another number of them."""
    rotated = rotate(matrix.contiguous(), representation.rotation)
    carry, fields = given_steps(representation, learned, rotated, parameter).encode(rotated)
    before: tuple[Fields, ...] = ({},) * len(representation.rotation.stages)  # rotations keep nothing
    return Code(carry, (*before, fields), tuple(matrix.shape), matrix.dtype)


def learned_view(representation: Representation, learned: Learned, matrix: Tensor, parameter: Tensor) -> View:
    """What estimators and statistics see of a weight under learned steps. Errors as for `learned_code`."""
    rotated = rotate(matrix.contiguous(), representation.rotation)
    given = given_steps(representation, learned, rotated, parameter)
    steps = ((given.stage, given.stage._with_shape(given.fields, given.shape)),)
    return View(rotated, given.project(rotated), steps, bool(representation.rotation.stages))


def given_steps(
    representation: Representation, learned: Learned, matrix: Tensor, parameter: Tensor
) -> GivenSteps:
    """The grid of a weight's representation under learned steps, on the rotated `matrix`."""
    stage = learned.grid_of(representation)
    if parameter.numel() != count_of(stage, tuple(matrix.shape)):
        raise ValueError(f"{parameter.numel()} steps, and {stage} has {count_of(stage, tuple(matrix.shape))}")
    own = parameter.detach().to(wide(parameter.dtype))
    return GivenSteps(stage, tuple(matrix.shape), matrix.dtype, learned.step(own, stage.levels.levels[-1]))
