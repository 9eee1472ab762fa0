"""How a stored matrix becomes numbers, in plain numbers: what kernels on packed weights need to know.

A matrix `[N, K]` (all but the last dimension of a tensor are rows) is `levels[code] * scale`, or
`(code - zero) * scale`; codes lie in rows as `packing` packs them. With a pattern of zeros it is the matrix
of the survivors, row by row, that is stored like this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

from ..packing import unpack
from ..representation import Representation
from ..stage import CARRY
from ..stages.grids import FloatGrid
from ..stages.quantize import Quantize
from ..stages.scales import Floating, Nested, PowerOfTwo
from ..stages.sparsify import Sparsify

_BYTES = 256


@dataclass(frozen=True)
class Sharing:
    """Which numbers share a value of a table `[R, C]`: (n, k) has that at (n // rows, k // columns)."""

    shape: tuple[int, int]
    rows: int
    columns: int

    @property
    def by_row(self) -> bool:
        """Whether one value, or one for each row, is all there is."""
        return self.shape[1] == 1


@dataclass(frozen=True)
class ScaleField:
    """Where scales are: `shape` of `sharing` in the field `name`, in this order.

    `table`: the field holds bytes, and byte i stands for table[i] (powers of two, 8-bit floats); None: it
    holds floats of 16 or 32 bits. `factor` names a field of one number that multiplies all of them, `unit` is
    a constant that does.
    """

    name: str
    sharing: Sharing
    table: tuple[float, ...] | None = None
    factor: str | None = None
    unit: float = 1.0


@dataclass(frozen=True)
class ZeroField:
    """Where zero points are, as many as scales: packed codes of `bits` bits (along the last dimension of the
    stored tensor), or floats (`bits` 0)."""

    name: str
    bits: int


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix `[rows, columns]` of codes of `bits` bits in the field `carry`.

    `levels[code]` times the scale is the value, for as many codes as there are levels (ascending for all
    grids but floats, whose codes are sign, exponent and mantissa). With `zero` it is (code - zero) * scale.
    `bits` 0: the field holds the numbers themselves, without levels and scales (survivors of a pattern).
    `pattern`: the matrix holds the survivors of this stage (the first of the chain, its fields `0.<name>`),
    of a matrix with `whole_columns` columns.
    """

    rows: int
    columns: int
    bits: int
    levels: tuple[float, ...] = ()
    scale: ScaleField | None = None
    zero: ZeroField | None = None
    pattern: Sparsify | None = None
    whole_columns: int = 0

    @cached_property
    def line(self) -> tuple[float, float] | None:
        """Level of code 0 and step from each level to the next, where all are equal; None where not."""
        steps = {high - low for low, high in zip(self.levels, self.levels[1:], strict=False)}
        return (self.levels[0], steps.pop()) if len(steps) == 1 else None

    def scales(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The scales, float32 `[R, C]`; one that is 1 where there are none."""
        field = self.scale
        if field is None:
            return torch.ones(1, 1, device=stored[CARRY].device)
        found = stored[field.name]
        if field.table is not None:
            table = torch.tensor(field.table, dtype=torch.float32, device=found.device)
            found = table[found.view(torch.uint8).long()]
        scales = found.to(torch.float32).reshape(field.sharing.shape)
        if field.factor is not None:
            scales = scales * stored[field.factor].to(torch.float32)
        return scales if field.unit == 1 else scales * field.unit

    def zeros(self, stored: Mapping[str, Tensor]) -> Tensor | None:
        """The zero points, float32 `[R, C]`; None of symmetric codes."""
        if self.zero is None or self.scale is None:
            return None
        found = stored[self.zero.name]
        if self.zero.bits:
            along = stored[self.scale.name].shape[-1]  # the dimension that zero points are packed along
            found = unpack(found, self.zero.bits, along)
        return found.to(torch.float32).reshape(self.scale.sharing.shape)


@lru_cache(maxsize=4096)
def stored_matrix(representation: Representation, shape: tuple[int, ...]) -> StoredMatrix | str:
    """The matrix that a representation without rotations stores of a tensor of this shape, or why it is not
    one of scalar codes."""
    stages = list(representation.bound_stages)
    if len(shape) < 2 or 0 in shape:
        return f"the weight has shape {list(shape)}, not a matrix's"
    pattern = None
    if stages and isinstance(stages[0], Sparsify):
        pattern, stages = stages[0], stages[1:]
    inner = shape if pattern is None else pattern.pattern.carry_shape(shape)
    if pattern is not None and not stages:
        return StoredMatrix(prod(inner[:-1]), inner[-1], 0, pattern=pattern, whole_columns=shape[-1])
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"{representation} is not one quantize stage, alone or after sparsify"
    return _quantized(stages[0], inner, pattern, shape[-1])


def _quantized(
    quantize: Quantize, shape: tuple[int, ...], pattern: Sparsify | None, whole_columns: int
) -> StoredMatrix | str:
    """The matrix of numbers of this shape, the survivors of a pattern where there is one."""
    if quantize.offset is not None:
        return f"{quantize} is moved off zero"
    prefix = "0." if pattern is None else "1."
    scale = _scale_field(quantize, shape, prefix)
    if isinstance(scale, str):
        return scale
    zero = None
    if not quantize.symmetric:
        zero = ZeroField(f"{prefix}zero_point", quantize.num_bits if quantize.zp_dtype is None else 0)
    rows, columns = prod(shape[:-1]), shape[-1]
    return StoredMatrix(
        rows, columns, quantize.num_bits, _levels(quantize), scale, zero, pattern, whole_columns
    )


def _levels(quantize: Quantize) -> tuple[float, ...]:
    grid = quantize.levels
    count = 1 << quantize.num_bits if isinstance(grid, FloatGrid) else len(grid.levels)
    return tuple(grid.decode(torch.arange(count, dtype=torch.uint8), torch.float32).tolist())


def _scale_field(quantize: Quantize, shape: tuple[int, ...], prefix: str) -> ScaleField | str:
    sharing = _sharing(quantize, shape)
    if isinstance(sharing, str):
        return sharing
    name, unit = f"{prefix}scale", quantize.unit
    storage = quantize.storage
    if isinstance(storage, PowerOfTwo):
        return ScaleField(name, sharing, _powers_of_two(), unit=unit)
    if isinstance(storage, Floating):
        narrow = storage.dtype if storage.dtype is not None and storage.dtype.startswith("float8") else None
        return ScaleField(name, sharing, _bytes_as(narrow) if narrow else None, unit=unit)
    assert isinstance(storage, Nested)
    inner = storage.chain.bound_stages
    if len(inner) == 1 and isinstance(inner[0], Quantize):
        stage = inner[0]
        if stage.num_bits == 8 and stage.symmetric and stage.strategy == "tensor" and stage.plain_scales:
            table = _levels(stage)
            full = (*table, *[table[-1]] * (_BYTES - len(table)))
            return ScaleField(f"{name}.carry", sharing, full, f"{name}.0.scale", unit)
    return f"its scales are stored by {storage.chain}"


def _sharing(quantize: Quantize, shape: tuple[int, ...]) -> Sharing | str:
    rows, columns = prod(shape[:-1]), shape[-1]
    if quantize.strategy == "tensor":
        return Sharing((1, 1), rows, columns)
    if quantize.block_structure is not None:
        high, wide = quantize.block_structure
        if len(shape) > 2 and shape[-2] % high:
            return f"blocks of {high} rows do not divide the {shape[-2]} of each matrix"
        return Sharing((-(-rows // high), -(-columns // wide)), high, wide)
    group = quantize.group_size or columns
    return Sharing((rows, -(-columns // group)), 1, group)


@lru_cache(maxsize=1)
def _powers_of_two() -> tuple[float, ...]:
    storage = PowerOfTwo()
    every = torch.arange(_BYTES, dtype=torch.uint8)
    return tuple(storage.restore({"scale": every}, (_BYTES,)).tolist())


@lru_cache(maxsize=4)
def _bytes_as(dtype: str) -> tuple[float, ...]:
    every = torch.arange(_BYTES, dtype=torch.uint8).view(getattr(torch, dtype))
    return tuple(every.to(torch.float32).tolist())
