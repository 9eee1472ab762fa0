"""The forward and backward pass of a projection: one pair of functions, for eager mode and for the compiler.

Eager mode calls them through an `autograd.Function`. Under torch.compile they are the custom operators
`rhoc::project` and `rhoc::project_backward`: nothing of a representation is traced, so graphs never break,
and what is projected to may change by step without compiling anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .program import Program, program_of_key
from .representation import Representation
from .training_kernels.select import kernel_for, mask_shape

NO_SEED = torch.empty(0, dtype=torch.int64)
"""The seed of a projection that draws nothing."""


def forward(
    program: Program, x: Tensor, values: Tensor, seed: Tensor, keep_rotated: bool, training: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    """What `x` is projected to, and what the backward pass multiplies with: empty where it is 1 everywhere.

    `wanted` says whether there will be a backward pass at all. A fused kernel gives bits, eight to a byte.
    """
    program = program.at(values)
    kernel = kernel_for(program.plan, x) if training else None
    if kernel is not None:
        projected, mask = kernel.project(x.contiguous(), program.plan, keep_rotated, wanted and program.masks)
        return projected, mask
    representation = _drawn(program.trained if training else program.representation, seed)
    view = representation.view(x)
    if training and any(estimator.random for estimator in program.estimators):
        generator = torch.Generator(x.device).manual_seed(int(seed))
    else:
        generator = torch.Generator(x.device)
    for estimator in program.estimators if training else ():
        replaced = estimator.replaced(view, generator)
        if replaced is not None:
            view = view.replaced(replaced)
    factor: Tensor | None = None
    for estimator in program.estimators if wanted else ():
        mask = estimator.mask(view)
        if mask is not None:
            factor = mask if factor is None else factor * mask
    result = view.projected if keep_rotated else _unrotate(representation.rotation, view.projected)
    return result.to(x.dtype), x.new_empty(0) if factor is None else factor


def backward(
    program: Program, grad: Tensor, factor: Tensor, values: Tensor, seed: Tensor, keep_rotated: bool, training: bool
) -> Tensor:
    """dL/dx from dL/dR(x), with the factor of `forward`."""
    program = program.at(values)
    kernel = kernel_for(program.plan, grad) if training else None
    if kernel is not None and program.masks:
        result: Tensor = kernel.backward(grad.contiguous(), factor, program.plan, keep_rotated)
        return result
    rotation = _drawn(program.trained if training else program.representation, seed).rotation
    if not factor.numel():
        return _unrotate(rotation, grad) if keep_rotated else grad
    rotated = grad if keep_rotated else _rotate(rotation, grad)
    return _unrotate(rotation, rotated * factor)


class Projection(torch.autograd.Function):
    """The projection in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, program: Program, values: Tensor, seed: Tensor, keep_rotated: bool, training: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0] and program.masks
        projected, factor = forward(program, x, values, seed, keep_rotated, training, wanted)
        ctx.program, ctx.keep_rotated, ctx.training = program.at(values), keep_rotated, training
        ctx.save_for_backward(factor, seed)
        return projected

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        grad = grads[0].to_dense()  # lookups may ask for sparse ones
        factor, seed = ctx.saved_tensors
        to_x = backward(ctx.program, grad, factor, _NOTHING, seed, ctx.keep_rotated, ctx.training)
        return to_x, None, None, None, None, None


_NOTHING = torch.empty(0, dtype=torch.float64)


def _project(
    x: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    program = program_of_key(key)
    projected, factor = forward(program, x, values, seed, keep_rotated, training, wanted)
    if wanted and program.masks and _fused(program, x, training) is None:
        factor = factor.to(x.dtype) if factor.numel() else torch.ones_like(x)
    return _own(projected, x), factor


def _project_fake(
    x: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    program = program_of_key(key)
    projected = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not (wanted and program.masks):
        return projected, x.new_empty(0)
    if _fused(program, x, training) is None:
        return projected, torch.empty_like(projected)
    return projected, x.new_empty(mask_shape(x), dtype=torch.uint8)


def _project_backward(
    grad: Tensor, factor: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool
) -> Tensor:
    result = backward(program_of_key(key), grad, factor, values, seed, keep_rotated, training)
    return _own(result, grad)


def _project_backward_fake(
    grad: Tensor, factor: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool
) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _fused(program: Program, x: Tensor, training: bool) -> object:
    """Whether a fused kernel takes it; scheduled programs are asked about as they are declared."""
    return kernel_for(program.plan, x) if training and not program.schedules else None


def _own(result: Tensor, given: Tensor) -> Tensor:
    """A contiguous tensor that shares no memory with what was given, as operators must return."""
    shared = result.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return result.clone(memory_format=torch.contiguous_format) if shared else result.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, values, seed, ctx.key, ctx.keep_rotated, ctx.training, _ = inputs
    ctx.save_for_backward(output[1], values, seed)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    factor, values, seed = ctx.saved_tensors
    to_x = _PROJECT_BACKWARD(grad, factor, values, seed, ctx.key, ctx.keep_rotated, ctx.training)
    return to_x, None, None, None, None, None, None


PROJECT = torch.library.custom_op("rhoc::project", _project, mutates_args=())
PROJECT.register_fake(_project_fake)
PROJECT.register_autograd(_differentiate, setup_context=_save)
_PROJECT_BACKWARD = torch.library.custom_op("rhoc::project_backward", _project_backward, mutates_args=())
_PROJECT_BACKWARD.register_fake(_project_backward_fake)


def _drawn(representation: Representation, seed: Tensor) -> Representation:
    return representation.drawn(int(seed)) if seed.numel() and representation.is_random else representation


def _rotate(rotation: Representation, x: Tensor) -> Tensor:
    for stage in rotation.bound_stages:
        x, _ = stage.encode(x)
    return x


def _unrotate(rotation: Representation, rotated: Tensor) -> Tensor:
    for stage in reversed(rotation.bound_stages):
        rotated = stage.decode(rotated, {})
    return rotated
