"""The forward and backward pass of a projection: one pair of functions, for eager mode and for the compiler.

Eager mode calls them through an `autograd.Function`. Under torch.compile they are the custom operators
`rhoc::project` and `rhoc::project_backward`: nothing of a representation is traced, so graphs never break,
and what is projected to may change by step without compiling anew.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .program import Program, program_of_key
from .representation import Representation
from .training_kernels.plan import Plan
from .training_kernels.select import kernel_for, mask_shape


def forward(
    program: Program,
    x: Tensor,
    values: Tensor,
    seed: Tensor,
    keep_rotated: bool,
    training: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `x` is projected to, and what the backward pass multiplies with and adds.

    The factor is empty where it is 1 everywhere, what is added where it is nothing. `wanted` says whether
    there will be a backward pass at all. A fused kernel gives the factor as bits, eight to a byte.
    """
    kernel = _fused(program, x, training)
    program = program.at(values)
    if kernel is not None:
        projected, mask = kernel.project(x.contiguous(), program.plan, keep_rotated, wanted and program.masks)
        return projected, mask, x.new_empty(0)
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
    added: Tensor | None = None
    for estimator in program.estimators if wanted else ():
        mask, pull = estimator.mask(view), estimator.pull(view) if training else None
        if mask is not None:
            factor = mask if factor is None else factor * mask
        if pull is not None:
            added = pull if added is None else added + pull
    result = view.projected if keep_rotated else _unrotate(representation.rotation, view.projected)
    return result.to(x.dtype), _saved(factor, x), _saved(added, x)


def _saved(numbers: Tensor | None, x: Tensor) -> Tensor:
    """Bool as it is, numbers in the dtype of the gradient."""
    if numbers is None:
        return x.new_empty(0)
    return numbers if numbers.dtype == torch.bool else numbers.to(x.dtype)


def backward(
    program: Program,
    grad: Tensor,
    factor: Tensor,
    added: Tensor,
    values: Tensor,
    seed: Tensor,
    keep_rotated: bool,
    training: bool,
) -> Tensor:
    """dL/dx from dL/dR(x), with the factor of `forward` and what it adds."""
    kernel = _fused(program, grad, training) if factor.dtype == torch.uint8 else None  # bits are a kernel's
    program = program.at(values)
    if kernel is not None:
        result: Tensor = kernel.backward(grad.contiguous(), factor, program.plan, keep_rotated)
        return result
    rotation = _drawn(program.trained if training else program.representation, seed).rotation
    if factor.numel():
        rotated = (grad if keep_rotated else _rotate(rotation, grad)) * factor
        return _unrotate(rotation, rotated + added if added.numel() else rotated)
    passed = _unrotate(rotation, grad) if keep_rotated else grad
    return passed + _unrotate(rotation, added) if added.numel() else passed


class Projection(torch.autograd.Function):
    """The projection in eager mode."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        program: Program,
        values: Tensor,
        seed: Tensor,
        keep_rotated: bool,
        training: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0] and (program.masks or program.pulls)
        projected, factor, added = forward(program, x, values, seed, keep_rotated, training, wanted)
        ctx.program, ctx.keep_rotated, ctx.training = program, keep_rotated, training
        # The values of this forward pass: those of the next step may be set before its backward pass.
        ctx.save_for_backward(factor, added, values.clone() if program.schedules else values, seed)
        return projected

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        grad = grads[0].to_dense()  # lookups may ask for sparse ones
        factor, added, values, seed = ctx.saved_tensors
        to_x = backward(ctx.program, grad, factor, added, values, seed, ctx.keep_rotated, ctx.training)
        return to_x, None, None, None, None, None


def _project(
    x: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    program = program_of_key(key)
    projected, factor, added = forward(program, x, values, seed, keep_rotated, training, wanted)
    if wanted and program.masks and _fused(program, x, training) is None:
        factor = _own(factor.to(x.dtype), x) if factor.numel() else torch.ones_like(x)
    if wanted and program.pulls:
        added = _own(added, x) if added.numel() else torch.zeros_like(x)
    return _own(projected, x), factor, added


def _project_fake(
    x: Tensor, values: Tensor, seed: Tensor, key: str, keep_rotated: bool, training: bool, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    program = program_of_key(key)
    projected = torch.empty_like(x, memory_format=torch.contiguous_format)
    added = torch.empty_like(projected) if wanted and program.pulls else x.new_empty(0)
    if _fused(program, x, training) is None:
        masked = wanted and program.masks
        return projected, torch.empty_like(projected) if masked else x.new_empty(0), added
    bits = mask_shape(x) if wanted and isinstance(program.plan, Plan) and program.plan.masks else [0]
    return projected, x.new_empty(bits, dtype=torch.uint8), added


def _project_backward(
    grad: Tensor,
    factor: Tensor,
    added: Tensor,
    values: Tensor,
    seed: Tensor,
    key: str,
    keep_rotated: bool,
    training: bool,
) -> Tensor:
    result = backward(program_of_key(key), grad, factor, added, values, seed, keep_rotated, training)
    return _own(result, grad)


def _project_backward_fake(grad: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _fused(program: Program, x: Tensor, training: bool) -> ModuleType | None:
    """The fused kernel that takes it; none for scheduled programs, whose plan may change by step."""
    return kernel_for(program.plan, x) if training and not program.schedules else None


def _own(result: Tensor, given: Tensor) -> Tensor:
    """A contiguous tensor that shares no memory with what was given, as operators must return."""
    shared = result.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return result.clone(memory_format=torch.contiguous_format) if shared else result.contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, values, seed, ctx.key, ctx.keep_rotated, ctx.training, _ = inputs
    ctx.save_for_backward(output[1], output[2], values, seed)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    factor, added, values, seed = ctx.saved_tensors
    if not (ctx.keep_rotated or factor.numel() or added.numel()):
        return grad, None, None, None, None, None, None  # P^T P is nothing to do, and an operator would copy
    to_x = _PROJECT_BACKWARD(grad, factor, added, values, seed, ctx.key, ctx.keep_rotated, ctx.training)
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
