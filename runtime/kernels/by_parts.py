"""Linear on a weight that is made of parts: each by the kernel of its own, in one product after another.

A sum is the sum of products, a product of factors two products with little between them, a split two products
of some of the inputs or outputs, and scales of columns or rows multiply the input or the output. Nothing of
the whole weight's size is made, as decoding it would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..entering import rotate
from ..packing import unpack
from ..representation import Representation
from ..stage import Stage
from ..stages import Product, Scale, Split, Sum
from .base import Call, Kernel, Selection
from .decode_linear import DecodeLinear

_READY = ":"  # after the prefix of a part, before the name of a field that its kernel has prepared


@dataclass(frozen=True)
class Part:
    """A chain inside a weight: under which prefix its fields are, and the matrix that it stores.

    `behind`: it is the rest of a chain, whose fields are those of the weight from the second stage on.
    """

    prefix: str
    representation: Representation
    shape: tuple[int, int]
    behind: bool = False

    def chosen(self, call: Call) -> tuple[Call, Selection]:
        """The call that this part is, and the kernel for it."""
        inner = replace(call, representation=self.representation.core, shape=self.shape)
        return inner, _select(inner)

    def linear(self, call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        """The product with this part, `[..., rows]`, for an input `[..., columns]`."""
        inner, selection = self.chosen(call)
        ready = f"{self.prefix}{_READY}"
        fields = {name.removeprefix(ready): t for name, t in stored.items() if name.startswith(ready)}
        return selection.kernel.run(
            inner, rotate(x, self.representation.rotation), fields or self.fields(stored), None
        )

    def prepared(self, call: Call, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its fields as its kernel has prepared them, under names of this part."""
        inner, selection = self.chosen(call)
        found = selection.kernel.prepare(inner, self.fields(stored))
        return {f"{self.prefix}{_READY}{name}": tensor for name, tensor in found.items()}

    def fields(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its fields as its representation without rotations names them."""
        if self.behind:
            return {_shifted(name, 1): tensor for name, tensor in stored.items() if name[:2] != "0."}
        start, turns = f"{self.prefix}.", len(self.representation.rotation.stages)
        inside = {name.removeprefix(start): t for name, t in stored.items() if name.startswith(start)}
        return {_shifted(name, turns): tensor for name, tensor in inside.items()}


def parts_of(representation: Representation, shape: tuple[int, ...]) -> tuple[Part, ...] | str:
    """The parts of a weight of this shape, or why it has none."""
    if len(shape) != 2 or 0 in shape:
        return f"the weight has shape {list(shape)}, not a matrix's"
    stages = representation.bound_stages
    first = stages[0] if stages else None
    if isinstance(first, Scale):
        return (Part("rest", Representation(stages[1:]), shape, behind=True),)
    if len(stages) == 1 and isinstance(first, Sum):
        return tuple(Part(f"0.{i}", term, shape) for i, term in enumerate(first.terms))
    if len(stages) == 1 and isinstance(first, Product):
        left, right = first.shapes(shape)
        return Part("0.right", first.right, right), Part("0.left", first.left, left)
    if len(stages) == 1 and isinstance(first, Split):
        selected, rest = first.shapes(shape)
        return Part("0.selected", first.selected, _pair(selected)), Part("0.rest", first.rest, _pair(rest))
    return f"{representation} is not a sum, product or split, nor scaled"


class LinearByParts(Kernel):
    """y = x R^T + b for a weight that is a sum, a product, a split, or scaled by rows or columns."""

    name: ClassVar[str] = "linear_by_parts"
    operation: ClassVar[str] = "linear"

    def refuse(self, call: Call) -> str | None:
        parts = parts_of(call.representation, call.shape)
        if isinstance(parts, str):
            return parts
        if all(isinstance(part.chosen(call)[1].kernel, DecodeLinear) for part in parts):
            return "every part of it would be decoded"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = dict(stored)
        for part in _parts(call):
            found |= part.prepared(call, stored)
        return found

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        stage = call.representation.bound_stages[0]
        result = _combined(stage, call, x, stored)
        return (result if bias is None else result + bias).to(x.dtype)


def _combined(stage: Stage, call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """The products of the parts put together; sums in float32 at least."""
    parts = _parts(call)
    if isinstance(stage, Scale):
        factors = stage.factors(stored["0.scale"]).to(torch.promote_types(x.dtype, torch.float32))
        if stage.along == "columns":
            return parts[0].linear(call, (x * factors).to(x.dtype), stored)
        return parts[0].linear(call, x, stored) * factors.squeeze(-1)
    if isinstance(stage, Product):
        return left_linear(call, right_linear(call, x, stored), stored)
    if isinstance(stage, Split):
        return _split(stage, call, x, stored)
    wide = torch.promote_types(x.dtype, torch.float32)
    total = parts[0].linear(call, x, stored).to(wide)
    for part in parts[1:]:
        total = total + part.linear(call, x, stored)
    return total


def right_linear(call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """The product of an input `[..., n]` with the right factor of a product: `[..., n / block * rank]`."""
    right, _ = _parts(call)
    if right.shape[1] == call.shape[1]:
        return right.linear(call, x, stored)
    return right.linear(call, torch.unflatten(x, -1, (-1, right.shape[1])), stored).flatten(-2)


def left_linear(call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """The product of what `right_linear` gives with the left factor: `[..., rows]`."""
    _, left = _parts(call)
    return left.linear(call, x, stored)


def _split(stage: Split, call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    parts = _parts(call)
    along = stage.along == "columns"
    order = stage.order(unpack(stored["0.mask"], 1, call.shape[1 if along else 0]) if stage.marked else None)
    if along:
        inputs = x if order is None else x.index_select(-1, order)
        count = parts[0].shape[1]
        first = parts[0].linear(call, inputs[..., :count], stored)
        wide = torch.promote_types(x.dtype, torch.float32)
        return first.to(wide) + parts[1].linear(call, inputs[..., count:], stored)
    result = torch.cat([part.linear(call, x, stored) for part in parts], -1)
    return result if order is None else result.index_select(-1, order.argsort())


@lru_cache(maxsize=4096)
def _known(representation: Representation, shape: tuple[int, ...]) -> tuple[Part, ...] | str:
    return parts_of(representation, shape)


def _parts(call: Call) -> tuple[Part, ...]:
    found = _known(call.representation, call.shape)
    assert not isinstance(found, str), "the call was refused"
    return found


@lru_cache(maxsize=4096)
def _select(call: Call) -> Selection:
    from . import select  # which this kernel is itself among

    return select(call)


def _pair(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _shifted(name: str, shift: int) -> str:
    """The name of a field when `shift` stages in front are left out."""
    position, dot, field = name.partition(".")
    return f"{int(position) - shift}.{field}" if dot and shift else name
