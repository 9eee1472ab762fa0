"""How an input enters packed linear operations: projected as they ask, and rotated as their weights are."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .program import program_of, program_of_key
from .representation import Representation


class Enter(nn.Module):
    """`enter` as a module without state, so that a graph can call it and print its name."""

    def __init__(self, projection: Representation, rotation: Representation) -> None:
        super().__init__()
        self.projection, self.rotation = projection, rotation
        self.keys = keys_of(projection, rotation)

    def forward(self, x: Tensor) -> Tensor:
        """`x` as packed linear operations take it."""
        if torch.compiler.is_compiling():
            return ENTER(x, *self.keys)  # type: ignore[no-any-return]
        return enter(x, self.projection, self.rotation)

    def extra_repr(self) -> str:
        return str(self.projection if self.projection.stages else self.rotation)


def enter(x: Tensor, projection: Representation, rotation: Representation) -> Tensor:
    """`x` projected and then rotated; where both begin with the same rotation, once.

    Gradients pass the projection as if it were not there (straight-through).
    """
    if projection.is_dense:
        return rotate(x, rotation)
    if projection.rotation == rotation:
        return _projected(rotate(x, rotation), projection.core)
    return rotate(_projected(x, projection), rotation)


def _projected(x: Tensor, projection: Representation) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _StraightThrough.apply(x, projection))  # type: ignore[no-untyped-call]
    return projection.project(x)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Representation) -> Tensor:
        return projection.project(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def keys_of(projection: Representation, rotation: Representation) -> tuple[str, str]:
    """The names by which `ENTER` finds the two again in this process."""
    return program_of(projection).key, program_of(rotation).key


def rotate(x: Tensor, rotation: Representation) -> Tensor:
    """`x` under the leading rotations of a representation."""
    return rotation.encode(x).carry if rotation.stages else x


def undo_rotation(representation: Representation, x: Tensor) -> Tensor:
    """`x` with the leading rotations of a representation undone."""
    for stage in reversed(representation.rotation.bound_stages):
        x = stage.decode(x, {})
    return x


def _enter(x: Tensor, projection: str, rotation: str) -> Tensor:
    prepared = enter(x, program_of_key(projection).representation, program_of_key(rotation).representation)
    return prepared.clone() if prepared is x else prepared.contiguous()


def _leave(grad: Tensor, rotation: str) -> Tensor:
    turned = undo_rotation(program_of_key(rotation).representation, grad)
    return turned.clone() if turned is grad else turned.contiguous()


def _like(x: Tensor, *_: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.rotation = inputs


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return LEAVE(grad, ctx.rotation), None, None


LEAVE = torch.library.custom_op("rhoc::leave", _leave, mutates_args=())
LEAVE.register_fake(_like)
ENTER = torch.library.custom_op("rhoc::enter", _enter, mutates_args=())
"""`enter` for a compiler, which traces nothing of it; representations by the keys of their programs."""

ENTER.register_fake(_like)
ENTER.register_autograd(_differentiate, setup_context=_save)
