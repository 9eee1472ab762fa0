"""The passes of a projection whose fields are trained: one set of functions, for eager mode and the compiler.

As in `projection_ops`, eager mode calls them through an `autograd.Function`, and torch.compile sees custom
operators, of which nothing is traced: `rhoc::decode_fields` and its backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .code import Code
from .grid_latents import coded, opened
from .program import Program, program_of_key
from .representation import Representation
from .stages.precision import wide


def forward(
    program: Program, like: Tensor, shape: Sequence[int], fields: Sequence[Tensor], keep_rotated: bool
) -> Tensor:
    """What fields decode to: a matrix of this shape in the dtype of `like`; `fields` are in the order of the
    layout, floats in any precision, and rounded as they are stored."""
    named = coded(program.representation, _stored(program.representation, like, shape, fields))
    return _decoded(program.representation, named, tuple(shape), like.dtype, keep_rotated)


def backward(
    program: Program,
    grad: Tensor,
    like: Tensor,
    shape: Sequence[int],
    fields: Sequence[Tensor],
    keep_rotated: bool,
) -> list[Tensor]:
    """dL/d(field) of the float fields, in their order, from dL/dR; rounding them is taken as
    straight-through. Steps of grids under trained numbers stay: theirs is zero."""
    given = _stored(program.representation, like, shape, fields)
    representation, named = opened(program.representation, given)
    trained = [name for name, tensor in named.items() if tensor.is_floating_point()]

    def decoded(*floats: Tensor) -> Tensor:
        given = {**named, **dict(zip(trained, floats, strict=True))}
        return _decoded(representation, given, tuple(shape), like.dtype, keep_rotated)

    # Once without a transform around it: what decoding remembers (matrices, levels) must be plain tensors.
    decoded(*(named[name] for name in trained))
    pulled = torch.func.vjp(decoded, *(named[name] for name in trained))[1]
    found = dict(zip(trained, pulled(grad), strict=True))
    floats = [(name, f) for name, f in zip(given, fields, strict=True) if f.is_floating_point()]
    return [found[n].to(f.dtype) if n in found else torch.zeros_like(f) for n, f in floats]


def _stored(
    representation: Representation, like: Tensor, shape: Sequence[int], fields: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The fields by name, floats rounded as they are stored, in the precision of the computation."""
    layout = representation.layout(tuple(shape), like.dtype)
    return {
        name: field.detach().to(to.dtype if to.dtype.is_floating_point else field.dtype).to(wide(field.dtype))
        if field.is_floating_point()
        else field
        for (name, to), field in zip(layout.items(), fields, strict=True)
    }


def _decoded(
    representation: Representation,
    named: dict[str, Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    keep_rotated: bool,
) -> Tensor:
    code = representation.code(named, shape, dtype)
    if not keep_rotated:
        return representation.decode(code)
    core = code.fields[len(representation.rotation.stages) :]
    return representation.core.decode(Code(code.carry, core, shape, dtype, code.closed))


class FieldsProjection(torch.autograd.Function):
    """The projection in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, program: Program, like: Tensor, shape: list[int], keep_rotated: bool, *fields: Tensor
    ) -> Tensor:
        ctx.save_for_backward(like, *fields)
        ctx.rest = program, shape, keep_rotated
        return forward(program, like, shape, fields, keep_rotated)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        like, *fields = ctx.saved_tensors
        program, shape, keep_rotated = ctx.rest
        grad = grads[0].to_dense()  # lookups may ask for sparse ones
        found = backward(program, grad, like, shape, fields, keep_rotated)
        return None, None, None, None, *_placed(found, fields)


def _placed(found: Sequence[Tensor], fields: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of floats, None for codes."""
    given = iter(found)
    return [next(given) if field.is_floating_point() else None for field in fields]


def _decode(like: Tensor, shape: list[int], fields: list[Tensor], key: str, keep_rotated: bool) -> Tensor:
    return forward(program_of_key(key), like, shape, fields, keep_rotated).contiguous()


def _decode_fake(
    like: Tensor, shape: list[int], fields: list[Tensor], key: str, keep_rotated: bool
) -> Tensor:
    return like.new_empty(shape)


def _decode_backward(
    grad: Tensor, like: Tensor, shape: list[int], fields: list[Tensor], key: str, keep_rotated: bool
) -> list[Tensor]:
    found = backward(program_of_key(key), grad, like, shape, fields, keep_rotated)
    return [each.clone(memory_format=torch.contiguous_format) for each in found]


def _decode_backward_fake(
    grad: Tensor, like: Tensor, shape: list[int], fields: list[Tensor], key: str, keep_rotated: bool
) -> list[Tensor]:
    plain = torch.contiguous_format
    return [torch.empty_like(f, memory_format=plain) for f in fields if f.is_floating_point()]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    like, shape, fields, *rest = inputs
    ctx.shape, ctx.rest = shape, rest
    ctx.save_for_backward(like, *fields)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    like, *fields = ctx.saved_tensors
    found = _DECODE_BACKWARD(grad, like, ctx.shape, fields, *ctx.rest)
    return None, None, _placed(found, fields), None, None


DECODE_FIELDS = torch.library.custom_op("rhoc::decode_fields", _decode, mutates_args=())
DECODE_FIELDS.register_fake(_decode_fake)
DECODE_FIELDS.register_autograd(_differentiate, setup_context=_save)
_DECODE_BACKWARD = torch.library.custom_op("rhoc::decode_fields_backward", _decode_backward, mutates_args=())
_DECODE_BACKWARD.register_fake(_decode_backward_fake)
