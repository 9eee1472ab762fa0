"""The passes of a projection whose steps are learned: one set of functions, for eager mode and the compiler.

As in `projection_ops`, eager mode calls them through an `autograd.Function`, and torch.compile sees custom
operators, of which nothing is traced: `rhoc::start_steps`, `rhoc::project_learned` and its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .determinism import one_thread
from .entering import rotate, undo_rotation
from .errors import RequestError
from .estimators.learned import Learned, learned_of
from .program import Program, program_of_key
from .stages.given_steps import GivenSteps, count_of, measured_steps
from .stages.precision import wide
from .stages.quantize import Quantize
from .stages.scales import AFFINE_RULES, CHUNK, Codes

KNOWN = torch.ones((), dtype=torch.uint8)
"""The flag of steps that have a value from the beginning."""


@dataclass(frozen=True)
class _Grid:
    """What is learned of one tensor: the estimator, the grid, and the parameters. In the rotated domain."""

    estimator: Learned
    stage: Quantize
    parameter: Tensor
    offset: Tensor  # without elements where there is none

    @property
    def top(self) -> float:
        return self.stage.levels.levels[-1]

    def given(self, x: Tensor) -> GivenSteps:
        """The grid on a tensor like `x`. Raises RequestError when it has another number of steps."""
        count = count_of(self.stage, tuple(x.shape))
        if self.parameter.numel() != count:
            raise RequestError(
                f"{self.parameter.numel()} learned steps, and {self.stage} has {count} on {list(x.shape)}",
                where="projection",
                advice="leave sizes of groups out of schedules, and load steps of the same model",
            )
        parameter = self.parameter.detach()
        steps = self.estimator.step(parameter.to(wide(parameter.dtype)), self.top)
        offset = self.offset if self.offset.numel() else None
        return GivenSteps(self.stage, tuple(x.shape), x.dtype, steps, offset)


def start(
    program: Program, x: Tensor, parameter: Tensor, offset: Tensor, known: Tensor, training: bool
) -> None:
    """Set steps (and an offset) that are NaN from a tensor, in training; a flag says once they are known."""
    if known:
        return
    if training and x.numel() and bool(parameter.isnan().any()):
        grid = _grid(program, parameter, offset)
        rotated = rotate(x.detach().contiguous(), program.representation.rotation)
        steps = _start(grid, rotated)
        parameter.copy_(grid.estimator.start(steps.to(wide(parameter.dtype)), grid.top))
    known.fill_(not bool(parameter.isnan().any()))


def _start(grid: _Grid, rotated: Tensor) -> Tensor:
    """The first steps; sets the offset where there is one."""
    if not grid.offset.numel():
        return measured_steps(grid.stage, rotated)
    levels = grid.stage.levels.levels
    own = wide(rotated.dtype)
    codes = Codes(len(levels) - 1, integer=False, precision=2 * torch.finfo(torch.float32).eps)
    line = AFFINE_RULES["mse"].line(rotated.to(own).reshape(1, -1), codes)
    step, lowest = line[0, :1], line[0, 1:]
    grid.offset.copy_(lowest - step * levels[0])
    return step


def forward(
    program: Program, x: Tensor, parameter: Tensor, offset: Tensor, known: Tensor, keep_rotated: bool
) -> Tensor:
    """What `x` is projected to under its learned steps; as it is measured while these are not known."""
    representation = program.representation
    if not known:
        projected = representation.view(x).projected
    else:
        rotated = rotate(x.contiguous(), representation.rotation)
        projected = _grid(program, parameter, offset).given(rotated).project(rotated)
        if representation.rotation.stages:
            projected = projected.to(torch.promote_types(projected.dtype, x.dtype))
    return (projected if keep_rotated else undo_rotation(representation, projected)).to(x.dtype)


def backward(
    program: Program,
    grad: Tensor,
    x: Tensor,
    parameter: Tensor,
    offset: Tensor,
    known: Tensor,
    keep_rotated: bool,
    features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, dL/d(parameter) and dL/d(offset) from dL/dR.

    `features`: those alone count in the scale of gradients, not all numbers that share a step.
    """
    representation = program.representation
    rotated = rotate(x.contiguous(), representation.rotation)
    upstream = grad if keep_rotated else rotate(grad.contiguous(), representation.rotation)
    grid = _grid(program, parameter, offset)
    if not known:
        scale = grid.stage.steps(grid.stage.project(rotated)[1], tuple(x.shape)).scale
        to_x = upstream * grid.estimator.passes(grid.stage, rotated / scale.to(rotated.dtype))
        return (
            undo_rotation(representation, to_x).to(x.dtype),
            torch.zeros_like(parameter),
            torch.zeros_like(offset),
        )
    given = grid.given(rotated)
    parts = list(_parts(grid, given, rotated, upstream, x.shape[-1] if features else None))
    to_x = undo_rotation(representation, given.joined([part.to_x for part in parts])).to(x.dtype)
    to_step = given.joined_steps([part.to_step for part in parts])
    to_parameter = torch.where(parameter < 0, -to_step, to_step).to(parameter.dtype)  # magnitudes count
    to_offset = torch.cat([part.to_offset for part in parts])  # one for each row, or one for all
    to_offset = to_offset.flatten() if offset.numel() == len(to_offset) else to_offset.sum()
    return to_x, to_parameter, to_offset.to(offset.dtype).expand(offset.shape)


@dataclass(frozen=True)
class _Part:
    """The gradients of tiles of one size: `[m, k]`, and `[m, 1]` twice."""

    to_x: Tensor
    to_step: Tensor
    to_offset: Tensor


def _parts(
    grid: _Grid, given: GivenSteps, rotated: Tensor, upstream: Tensor, features: int | None
) -> Iterator[_Part]:
    for (block, scale), grad in zip(given.parts(rotated), given.split(upstream), strict=True):
        factor = grid.estimator.gradient_factor(features or block.shape[-1], grid.top)
        part = _Part(torch.empty_like(block), torch.zeros_like(block[:, :1]), torch.zeros_like(block[:, :1]))
        low, high = grid.stage.levels.levels[0] - 1, grid.top + 1  # all beyond is alike, infinity too
        for at, across in _pieces(block):
            scaled = (block[at, across] / scale[at]).clamp_(low, high)
            _add(grid, part, scaled, grad[at, across], at, across)
        yield _Part(part.to_x, part.to_step * factor, part.to_offset * factor)


def _add(grid: _Grid, part: _Part, scaled: Tensor, grad: Tensor, at: slice, across: slice) -> None:
    """The gradients of numbers that lie together, in units of their steps."""
    passes = grid.estimator.passes(grid.stage, scaled)
    levels = grid.stage.levels.project(scaled.clone())
    slope = grid.estimator.slope(scaled, levels, passes, grid.top)
    part.to_step[at] += slope.mul_(grad).sum(-1, keepdim=True)
    to_x = torch.mul(grad, passes, out=part.to_x[at, across])
    if grid.offset.numel():
        part.to_offset[at] += (grad - to_x).sum(-1, keepdim=True)


def _pieces(block: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of a matrix that stay in a core's cache; the whole of it elsewhere."""
    rows, columns = block.shape
    if block.numel() <= CHUNK or not block.is_cpu:
        yield slice(None), slice(None)
        return
    step = max(1, CHUNK // columns)
    with one_thread():
        for start, left in product(range(0, rows, step), range(0, columns, CHUNK)):
            yield slice(start, start + step), slice(left, left + CHUNK)


def _grid(program: Program, parameter: Tensor, offset: Tensor) -> _Grid:
    estimator = learned_of(program.estimators)
    assert estimator is not None
    return _Grid(estimator, estimator.grid_of(program.representation), parameter, offset)


class LearnedProjection(torch.autograd.Function):
    """The projection in eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parameter: Tensor,
        offset: Tensor,
        program: Program,
        known: Tensor,
        keep_rotated: bool,
        features: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, parameter, offset)
        # A flag changes in place only from unknown to known, which the backward pass must not mistake.
        ctx.rest = program, known.clone(), keep_rotated, features
        return forward(program, x, parameter, offset, known, keep_rotated)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, parameter, offset = ctx.saved_tensors
        program, known, keep_rotated, features = ctx.rest
        grad = grads[0].to_dense()  # lookups may ask for sparse ones
        found = backward(program, grad, x, parameter, offset, known, keep_rotated, features)
        return *found, None, None, None, None


def _start_steps(
    x: Tensor, parameter: Tensor, offset: Tensor, known: Tensor, values: Tensor, key: str, training: bool
) -> None:
    start(program_of_key(key).at(values), x, parameter, offset, known, training)


def _project(
    x: Tensor,
    parameter: Tensor,
    offset: Tensor,
    known: Tensor,
    values: Tensor,
    key: str,
    keep_rotated: bool,
    features: bool,
) -> Tensor:
    program = program_of_key(key).at(values)
    return _own(forward(program, x, parameter, offset, known, keep_rotated), x)


def _project_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _project_backward(
    grad: Tensor,
    x: Tensor,
    parameter: Tensor,
    offset: Tensor,
    known: Tensor,
    values: Tensor,
    key: str,
    keep_rotated: bool,
    features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    program = program_of_key(key).at(values)
    to_x, to_parameter, to_offset = backward(
        program, grad, x, parameter, offset, known, keep_rotated, features
    )
    return _own(to_x, grad), _own(to_parameter, parameter), _own(to_offset, offset)


def _project_backward_fake(
    grad: Tensor, x: Tensor, parameter: Tensor, offset: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _project_fake(x), _project_fake(parameter), _project_fake(offset)


def _own(result: Tensor, given: Tensor) -> Tensor:
    """A contiguous tensor that shares no memory with what was given, as operators must return."""
    shared = result.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return result.clone(memory_format=torch.contiguous_format) if shared else result.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, parameter, offset, known, values, *rest = inputs
    ctx.rest = rest
    ctx.save_for_backward(x, parameter, offset, known, values)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, parameter, offset, known, values = ctx.saved_tensors
    found = _PROJECT_BACKWARD(grad, x, parameter, offset, known, values, *ctx.rest)
    return *found, None, None, None, None, None


START = torch.library.custom_op(
    "rhoc::start_steps", _start_steps, mutates_args=("parameter", "offset", "known")
)
START.register_fake(lambda *given: None)
PROJECT_LEARNED = torch.library.custom_op("rhoc::project_learned", _project, mutates_args=())
PROJECT_LEARNED.register_fake(_project_fake)
PROJECT_LEARNED.register_autograd(_differentiate, setup_context=_save)
_PROJECT_BACKWARD = torch.library.custom_op(
    "rhoc::project_learned_backward", _project_backward, mutates_args=()
)
_PROJECT_BACKWARD.register_fake(_project_backward_fake)
