"""Representations inside a stage: their fields under a prefix, as every composite stage stores them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..code import Code
from ..errors import RequestError
from ..marchenko_pastur import REFERENCE_SHAPE
from ..representation import Representation
from ..stage import Fields, Sized
from .precision import wide

DENSE = Representation()


def code_fields(prefix: str, code: Code) -> Fields:
    """All tensors of an inner code, named `<prefix>.<name>`, in memory as they will be stored.

    Matmuls may sum in another order where strides differ, and what was stored must decode to the same bits.
    """
    return {f"{prefix}.{name}": tensor.contiguous() for name, tensor in code.named().items()}


def restored(
    prefix: str, representation: Representation, fields: Fields, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """What an inner code that `code_fields` named decodes to, a tensor of this shape, in float32 at least."""
    start = f"{prefix}."
    named = {name.removeprefix(start): t for name, t in fields.items() if name.startswith(start)}
    tensor = representation.restore(representation.code(named, shape, dtype))
    return tensor.to(wide(torch.promote_types(tensor.dtype, dtype)))


def part_layout(
    prefix: str, representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Sized]:
    """The fields of `code_fields` without encoding anything."""
    layout = representation.layout(shape, dtype)
    return {
        f"{prefix}.{name}": Sized(field.shape, field.dtype, field.variable) for name, field in layout.items()
    }


def part_widths(prefix: str, representation: Representation) -> Mapping[str, int]:
    """Stored bits of the inner integer fields."""
    return {f"{prefix}.{name}": bits for name, bits in representation.widths().items()}


def refuse_sharing(kind: str, *parts: Representation) -> None:
    """Raise RequestError when a part would share something over tensors that this kind hands it changed."""
    for stage in (stage for part in parts for stage in part.all_stages()):
        scope = getattr(stage, "scope", None)
        if scope in ("network", "siblings"):
            advice = "use scope: tensor there" if scope == "network" else "leave scope out there"
            raise RequestError(f"scope: {scope} does not work inside a {kind}", advice=advice)


def nothing(like: Tensor) -> Tensor:
    """The carry of a stage that keeps all in its fields: no elements, only `[0, *shape]` and a dtype."""
    return like.new_empty((0, *like.shape))


def nothing_sized(x: Sized) -> Sized:
    """`nothing` in a layout."""
    return Sized((0, *x.shape), x.dtype)


def resized(representation: Representation, rows: int, columns: int) -> Representation:
    """The representation with every stage as it should be on `[rows, columns]`; see `Stage.resized`."""
    return Representation(tuple(stage.resized(rows, columns) for stage in representation.stages))


def quadrature(representation: Representation) -> float | None:
    """The error of a chain on Gaussian numbers; None where a stage's is not known."""
    errors = [error for _, error in representation.walk()]
    known = [error for error in errors if error is not None]
    return sum(known) if len(known) == len(errors) else None


def has_rank(representation: Representation) -> bool:
    """Whether anything in it has a size that is meant for the reference matrix, such as a rank."""
    rows, columns = REFERENCE_SHAPE
    return resized(representation, 2 * rows, 2 * columns) != representation
