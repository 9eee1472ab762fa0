"""A representation: a chain of stages, and everything that follows from their `encode` and `decode`.

>>> from rhoc.runtime.stages import Hadamard, Quantize
>>> r = Representation((Hadamard(128), Quantize(4, strategy="channel", observer="rms", grid="midrise")))
>>> str(r)
'hadamard(128) >> quantize(int4, midrise, channel, rms)'
>>> r.bits_per_weight((256, 512), torch.bfloat16)
4.03125
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from .gaussian import Source
from .packing import pack, packed_length, unpack
from .stages.base import CARRY, Cell, Fields, Sized, Stage


@dataclass(frozen=True)
class FieldLayout:
    """How one field is stored: logical shape and dtype, and bits per element."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int

    @property
    def packed(self) -> bool:
        """Whether elements are packed below their dtype's width."""
        return self.bits < 8 * self.dtype.itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored tensor: bytes along the last dimension when packed."""
        if not self.packed or not self.shape:
            return self.shape
        return (*self.shape[:-1], packed_length(self.shape[-1], self.bits))

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return prod(self.stored_shape) * (1 if self.packed else self.dtype.itemsize)


@dataclass(frozen=True)
class Code:
    """An encoded tensor: what the last stage handed on, every stage's fields, and what decode restores."""

    carry: Tensor
    fields: tuple[Fields, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def named(self) -> dict[str, Tensor]:
        """All tensors by name: `carry`, and `<position>.<field>` for the fields of each stage."""
        named = {f"{i}.{name}": t for i, fields in enumerate(self.fields) for name, t in fields.items()}
        return {CARRY: self.carry, **named}


@dataclass(frozen=True)
class View:
    """A projection as estimators see it, in the domain after leading rotations. Shapes are the tensor's own.

    What not every estimator needs is computed on first use.
    """

    latent: Tensor
    projected: Tensor  # what the latent tensor became, in the precision of the computation
    steps: tuple[tuple[Stage, Fields], ...]  # the stages after the rotation, and what they kept
    rotated: bool

    @cached_property
    def kept(self) -> Tensor | None:
        """Bool, true where a sparse stage kept a number; None when nothing is sparse."""
        kept: Tensor | None = None
        for stage, fields in reversed(self.steps):
            kept = stage.kept(fields) if kept is None else stage.decode(kept, fields)
        return kept

    @cached_property
    def cell(self) -> Cell | None:
        """The grid's geometry at every number; None when there is no grid."""
        cells = (stage.cell(fields) for stage, fields in self.steps)
        cell = next((cell for cell in cells if cell is not None), None)
        sparse = [(stage, fields) for stage, fields in self.steps if "sparse" in stage.tags]
        return _scatter_cell(sparse, cell) if sparse and cell is not None else cell


@dataclass(frozen=True)
class Representation:
    """How a tensor is stored: stages from the dense tensor to bits. No stages: dense.

    `a >> b` chains. Equality, hash and text are those of the stages as written; choices that depend on
    what comes before (the clip of an rms scale) are made once, in `bound_stages`.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for before, after in pairwise(self.stages):
            if CARRY in before.widths():
                raise ValueError(
                    f"{after} cannot follow {before}, which hands on integer codes; put it before"
                )

    def __rshift__(self, other: Representation) -> Representation:
        return Representation(self.stages + other.stages)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done at all."""
        return not self.stages

    @cached_property
    def bound_stages(self) -> tuple[Stage, ...]:
        """The stages with every choice made that depends on what they are handed."""
        return tuple(stage for stage, _ in self.walk())

    def walk(self) -> Iterator[tuple[Stage, float | None]]:
        """Each bound stage with the squared error it adds on Gaussian data.

        None from the first stage that quadrature does not reach; from there on stages are bound to plain
        Gaussian data.
        """
        source: Source | None = Source()
        for stage in self.stages:
            bound = stage.bound(source or Source())
            result = bound.gaussian(source) if source is not None else None
            source, error = result if result is not None else (None, None)
            yield bound, error

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `RequestError` when a tensor of this shape cannot be encoded."""
        self.layout(shape, torch.float32)

    def encode(self, x: Tensor) -> Code:
        """Tensor of any floating dtype to its code."""
        fields: list[Fields] = []
        carry = x
        for stage in self.bound_stages:
            carry, kept = stage.encode(carry)
            fields.append(kept)
        return Code(carry, tuple(fields), tuple(x.shape), x.dtype)

    def decode(self, code: Code) -> Tensor:
        """The code back to a tensor of the original shape and dtype."""
        return self.restore(code).to(code.dtype)

    def restore(self, code: Code) -> Tensor:
        """`decode` without the last rounding to the dtype: float32 or more once a grid took part."""
        carry = code.carry
        for stage, fields in zip(reversed(self.bound_stages), reversed(code.fields), strict=True):
            carry = stage.decode(carry, fields)
        return carry

    def project(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`: the tensor that a model with this representation really has."""
        return self.decode(self.encode(x)) if self.stages else x

    @cached_property
    def rotation(self) -> Representation:
        """The leading orthogonal stages."""
        count = next((i for i, s in enumerate(self.stages) if "orthogonal" not in s.tags), len(self.stages))
        return Representation(self.stages[:count])

    @cached_property
    def core(self) -> Representation:
        """What follows the leading rotations, bound as in the whole chain."""
        return Representation(self.bound_stages[len(self.rotation.stages) :])

    def view(self, x: Tensor) -> View:
        """What estimators need to know of the projection of `x`.

        Rotating `projected` back and rounding it to the dtype of `x` gives `project(x)`, bit for bit.
        """
        latent = self.rotation.encode(x).carry
        projected, steps = latent, []
        for stage in self.core.stages[:-1]:
            projected, fields = stage.encode(projected)
            steps.append((stage, fields))
        for stage in self.core.stages[-1:]:
            projected, last = stage.project(projected)
            for earlier, fields in reversed(steps):
                projected = earlier.decode(projected, fields)
            steps.append((stage, last))
        return View(latent, projected, tuple(steps), bool(self.rotation.stages))

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, FieldLayout]:
        """Every stored field for a tensor of this shape and dtype."""
        return dict(_layout(self, tuple(shape), dtype))

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Stored bytes of a tensor of this shape and dtype."""
        return sum(field.nbytes for field in self.layout(shape, dtype).values())

    def bits_per_weight(self, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> float:
        """Stored bits, all fields included, over the number of dense weights."""
        return 8 * self.nbytes(shape, dtype) / max(prod(shape), 1)

    def pack(self, code: Code) -> dict[str, Tensor]:
        """The code as stored tensors, by field name, sub-byte fields packed along their last dimension."""
        widths = self._widths()
        stored = {}
        for name, tensor in code.named().items():
            bits = widths.get(name, 8 * tensor.dtype.itemsize)
            stored[name] = pack(tensor, bits) if bits < 8 * tensor.dtype.itemsize else tensor.contiguous()
        return stored

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Code:
        """The inverse of `pack` for a tensor that had this shape and dtype."""
        named = {}
        for name, field in self.layout(shape, dtype).items():
            tensor = stored[name]
            named[name] = (
                unpack(tensor, field.bits, *field.shape[-1:]).to(field.dtype) if field.packed else tensor
            )
        fields: list[Fields] = [{} for _ in self.stages]
        for name, tensor in named.items():
            if name != CARRY:
                position, _, field_name = name.partition(".")
                fields[int(position)][field_name] = tensor
        return Code(named[CARRY], tuple(fields), shape, dtype)

    def _widths(self) -> dict[str, int]:
        """Stored bits of integer fields by their name in `Code.named`."""
        widths = {}
        for position, stage in enumerate(self.bound_stages):
            for name, bits in stage.widths().items():
                if name != CARRY:
                    widths[f"{position}.{name}"] = bits
                elif position == len(self.stages) - 1:
                    widths[CARRY] = bits
        return widths

    def __str__(self) -> str:
        return " >> ".join(str(stage) for stage in self.stages) or "dense"


@lru_cache(maxsize=4096)
def _layout(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, FieldLayout]:
    """The layout, remembered: unpacking asks every time."""
    widths = representation._widths()
    carry = Sized(shape, dtype)
    named: dict[str, Sized] = {}
    for position, stage in enumerate(representation.bound_stages):
        carry, fields = stage.layout(carry)
        named |= {f"{position}.{name}": field for name, field in fields.items()}
    return {
        name: FieldLayout(field.shape, field.dtype, widths.get(name, 8 * field.dtype.itemsize))
        for name, field in {CARRY: carry, **named}.items()
    }


def _scatter_cell(sparse: list[tuple[Stage, Fields]], cell: Cell) -> Cell:
    """A survivor's cell at its place; zeroed places take the widest of their row, or else of the tensor."""
    if not cell.half_width.shape or cell.half_width.shape[-1] <= 1:
        return cell  # one for a whole row holds for its zeroed places too
    half_width, outermost = (_spread(sparse, value) for value in (cell.half_width, cell.outermost))
    return Cell(half_width, outermost, cell.num_levels)


def _spread(sparse: list[tuple[Stage, Fields]], value: Tensor) -> Tensor:
    """Survivors' numbers put back in their places; elsewhere the largest of the row, or of the tensor."""
    for stage, fields in reversed(sparse):
        value = stage.decode(value, fields)
    if not value.numel():
        return value
    widest = value.amax(-1, keepdim=True)
    return torch.where(value > 0, value, torch.where(widest > 0, widest, value.amax()))
