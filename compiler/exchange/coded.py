"""A matrix of codes with scales, as layouts hand it on: between our stored fields and tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.kernels.stored import StoredMatrix, stored_matrix
from ...runtime.packed import Packed
from ...runtime.packing import unpack
from ...runtime.representation import Representation
from ...runtime.stage import CARRY
from ...runtime.stages.grids import parse_grid
from ...runtime.stages.quantize import Quantize
from .arguments import Arguments

DENSE_ADVICE = "leave it out with `ignore`, or write decoded weights with `--to dense`"
FLOATS = {4: "e2m1", 6: "e2m3", 8: "e4m3"}  # the grids of floats of these widths
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Coded:
    """Codes uint8 `[N, K]`; scales and zero points (codes too) as many as share one, `[R, C]` or `[1]`.

    `scale` is as it is stored: floats, or bytes of exponents. `factor` is one float32 that goes with scales.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    factor: Tensor | None = None


@dataclass(frozen=True)
class Held:
    """A packed matrix `[N, K]` taken apart: its last stage, what that stored, and how it becomes numbers."""

    core: Representation
    fields: Mapping[str, Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    quantize: Quantize
    matrix: StoredMatrix

    @property
    def codes(self) -> Tensor:
        """One code a number, uint8."""
        return unpack(self.fields[CARRY], self.matrix.bits, self.shape[1])

    def exact_scales(self) -> Tensor:
        """Scales in the weight's own dtype. Raises RequestError where that would round them."""
        scales = self.matrix.scales(self.fields)
        own = scales.to(self.dtype)
        if not torch.equal(own.to(scales.dtype), scales):
            name = str(self.dtype).removeprefix("torch.")
            raise RequestError(
                f"compressed-tensors stores scales in the weight's dtype, and {name} does not hold those of "
                f"{self.quantize}",
                advice=f"leave scale_dtype out of the spec, which stores them in {name}",
            )
        return own

    def decoded(self) -> Tensor:
        """The matrix, in the domain after rotations."""
        return self.core.decode(self.core.unpack(self.fields, self.shape, self.dtype))


def held(packed: Packed) -> Held:
    """A packed weight taken apart. Raises RequestError when it is no matrix of codes with scales."""
    shape = tuple(packed.shape)
    if len(shape) != 2 or not packed.arrangement.is_plain:
        raise RequestError(
            f"a weight of shape {list(shape)} that is not multiplied row by row has no layout there",
            advice=DENSE_ADVICE,
        )
    if packed.encoded_dtype not in _DTYPES:
        raise RequestError(
            f"weights of {packed.encoded_dtype} have no layout there", advice="build the model in bfloat16"
        )
    core = packed.representation.core
    matrix = stored_matrix(core, shape)
    if isinstance(matrix, str) or matrix.pattern is not None or not matrix.bits:
        raise RequestError(
            f"{core} is not one quantize stage, which is all that compressed-tensors has", advice=DENSE_ADVICE
        )
    stage = core.bound_stages[-1]
    assert isinstance(stage, Quantize)
    return Held(core, core_fields(packed), (shape[0], shape[1]), packed.encoded_dtype, stage, matrix)


def core_fields(packed: Packed) -> dict[str, Tensor]:
    """The fields as the representation without its rotations names them (rotations keep none)."""
    shift = len(packed.representation.rotation.stages)
    found = {}
    for name, tensor in packed.fields().items():
        position, dot, field = name.partition(".")
        found[f"{int(position) - shift}.{field}" if dot else name] = tensor
    return found


def values(codes: Tensor, arguments: Arguments) -> Tensor:
    """What codes stand for, float32: signed integers, integers before their zero point, or floats."""
    if arguments.type == "float":
        return table(arguments.num_bits).to(codes.device)[codes.long()]
    return codes.to(torch.float32) - (arguments.half if arguments.symmetric else 0)


@lru_cache(maxsize=8)
def table(bits: int) -> Tensor:
    """The value of every code of a float, float32 (codes are sign, exponent and mantissa).

    Raises RequestError for a width that has no format.
    """
    if bits not in FLOATS:
        raise RequestError(f"floats of {bits} bits have no format there", advice="known are 4, 6 and 8 bits")
    grid = parse_grid(FLOATS[bits], bits)
    return grid.decode(torch.arange(1 << bits, dtype=torch.uint8), torch.float32)


def is_float(matrix: StoredMatrix, bits: int) -> bool:
    """Whether codes are those of the float that compressed-tensors has in this width."""
    return matrix.bits == bits and _same(matrix.levels, tuple(table(bits).tolist()))


def _same(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Equal, with no number equal to no number."""
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b or (a != a and b != b) for a, b in pairs)


def product(numbers: Tensor, scale: Tensor, zero: Tensor | None, arguments: Arguments) -> Tensor:
    """(numbers - zero) * scale in the dtype of the scales, as compressed-tensors decompresses (0.20)."""
    found = numbers.to(scale.dtype)
    if zero is not None:
        found = found - _spread(zero, tuple(numbers.shape), arguments).to(scale.dtype)
    return found * _spread(scale, tuple(numbers.shape), arguments)


def _spread(shared: Tensor, shape: tuple[int, ...], arguments: Arguments) -> Tensor:
    """What numbers share, for each of them or broadcasting to them."""
    if arguments.strategy in ("tensor", "channel"):
        return shared.reshape(-1, 1)
    if arguments.block_structure is not None:
        rows, columns = arguments.block_structure
        shared = shared.repeat_interleave(rows, 0)[: shape[0]]
    else:
        columns = arguments.group_size or shape[1]
    return shared.repeat_interleave(columns, 1)[:, : shape[1]]


def scale_shape(arguments: Arguments, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of scales in a file."""
    if arguments.strategy == "tensor":
        return (1,)
    if arguments.block_structure is not None:
        high, wide = arguments.block_structure
        return (-(-rows // high), -(-columns // wide))
    return (rows, 1 if arguments.group_size is None else -(-columns // arguments.group_size))


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, the sign of zero included."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}[first.dtype.itemsize]
    return torch.equal(first.contiguous().view(integer), second.contiguous().view(integer))
