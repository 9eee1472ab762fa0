"""Runs the machine text of kernels on numpy arrays, instruction by instruction as the PTX manual has it.

What no interpreter of Triton runs, and no processor: the straight lines of PTX that put bits together.
Registers hold uint32; operands $0, $1, ... are outputs ("=h" or "=r") and then inputs, as the constraints
say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def run(text: str, constraints: str, *inputs: Words) -> list[Words]:
    """The outputs of a text for inputs of one shape."""
    kinds = constraints.split(",")
    outputs = [i for i, kind in enumerate(kinds) if kind.startswith("=")]
    assert len(inputs) == len(kinds) - len(outputs), "an input for each constraint"
    registers = {f"${len(outputs) + i}": np.asarray(x).astype(np.uint32) for i, x in enumerate(inputs)}
    machine = _Machine(registers)
    body = re.sub(r"^\{|\}$", "", text.strip())
    for statement in re.split(r";\s*", body.strip()):
        if statement and not statement.strip().startswith("."):
            machine.step(statement.strip())
    shape = np.broadcast(*inputs).shape
    return [np.broadcast_to(machine.registers[f"${i}"], shape) for i in outputs]


def as_floats(words: Words, dtype: torch.dtype) -> torch.Tensor:
    """16-bit patterns as float64 numbers."""
    halves = torch.from_numpy(np.ascontiguousarray(words & 0xFFFF).astype(np.uint16).view(np.int16))
    return halves.view(dtype).double()


@dataclass
class _Machine:
    registers: dict[str, Words] = field(default_factory=dict)

    def step(self, statement: str) -> None:
        operation, _, rest = statement.partition(" ")
        arguments = re.findall(r"\{[^}]*\}|[^,\s]+", rest)
        if operation == "mov.b32" and "{" in rest:
            self._halves(*arguments)
            return
        target, *sources = arguments
        self.registers[target] = _RUN[operation](*(self._value(s) for s in sources))

    def _halves(self, target: str, source: str) -> None:
        if target.startswith("{"):
            low, high = re.findall(r"[^{},\s]+", target)
            word = self._value(source)
            self.registers[low], self.registers[high] = word & 0xFFFF, word >> 16
        else:
            low, high = (self._value(name) for name in re.findall(r"[^{},\s]+", source))
            self.registers[target] = (low & 0xFFFF) | (high << 16)

    def _value(self, source: str) -> Words:
        if source in self.registers:
            return self.registers[source]
        if source.startswith("0f"):
            return np.uint32(int(source[2:], 16))
        return np.uint32(int(source, 0) & 0xFFFFFFFF)


def _lop3(a: Words, b: Words, c: Words, table: Words) -> Words:
    result = np.zeros_like(a | b | c)
    for place in range(8):
        if int(table) >> place & 1:
            bits = [x if place >> (2 - i) & 1 else ~x for i, x in enumerate((a, b, c))]
            result = result | (bits[0] & bits[1] & bits[2])
    return result


def _prmt(a: Words, b: Words, selectors: Words) -> Words:
    both = np.broadcast_arrays(a, b, selectors)
    pool = np.stack([(both[i // 4] >> np.uint32(8 * (i % 4))) & 0xFF for i in range(8)])
    result = np.zeros_like(both[2])
    for place in range(4):
        nibble = (both[2] >> np.uint32(4 * place)) & 15
        byte = np.take_along_axis(pool, (nibble & 7)[None].astype(np.int64), 0)[0]
        byte = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        result = result | (byte.astype(np.uint32) << np.uint32(8 * place))
    return result.astype(np.uint32)


def _shifted(x: Words, count: Words, left: bool) -> Words:
    wide, count = np.asarray(x).astype(np.uint64), np.minimum(count, 32).astype(np.uint64)
    return ((wide << count if left else wide >> count) & 0xFFFFFFFF).astype(np.uint32)


def _lanes(x: Words, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([as_floats(x & 0xFFFF, dtype), as_floats(x >> 16, dtype)])


def _pattern(values: torch.Tensor, dtype: torch.dtype) -> Words:
    """Two lanes of float64 numbers, rounded once, as a register."""
    bits = values.to(dtype).view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    return (bits[0] | bits[1] << 16).astype(np.uint32)


def _fused(dtype: torch.dtype) -> object:
    def fma(a: Words, b: Words, c: Words) -> Words:
        a, b, c = np.broadcast_arrays(a, b, c)
        return _pattern(_lanes(a, dtype) * _lanes(b, dtype) + _lanes(c, dtype), dtype)

    return fma


def _converted(dtype: torch.dtype) -> object:
    def convert(high: Words, low: Words) -> Words:
        numbers = [
            torch.from_numpy(np.ascontiguousarray(x).view(np.float32).astype(np.float64)) for x in (low, high)
        ]
        return _pattern(torch.stack(numbers), dtype)

    return convert


def _dp4a(a: Words, b: Words, c: Words) -> Words:
    total = np.asarray(c).astype(np.uint64)
    for place in range(0, 32, 8):
        total = total + (a >> np.uint32(place) & 0xFF).astype(np.uint64) * (b >> np.uint32(place) & 0xFF)
    return (total & 0xFFFFFFFF).astype(np.uint32)


def _multiplied(a: Words, b: Words, c: Words) -> Words:
    return (np.asarray(a).astype(np.uint64) * b + c & 0xFFFFFFFF).astype(np.uint32)


def _added(a: Words, b: Words) -> Words:
    return (
        (np.asarray(a).view(np.float32) + np.asarray(b).view(np.float32)).astype(np.float32).view(np.uint32)
    )


def _bits(a: Words, first: Words, count: Words) -> Words:
    return _shifted(a, first, False) & np.uint32((1 << int(count)) - 1)


def _ones(a: Words) -> Words:
    bits: Sequence[Words] = [a >> np.uint32(i) & 1 for i in range(32)]
    return np.sum(bits, 0).astype(np.uint32)


def _half(a: Words) -> Words:
    return as_floats(a, torch.float16).numpy().astype(np.float32).view(np.uint32)


def _sum_of_halves(a: Words, b: Words) -> Words:
    return _pattern(_lanes(a, torch.float16) + _lanes(b, torch.float16), torch.float16)


_RUN = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: _shifted(a, b, True),
    "shr.u32": lambda a, b: _shifted(a, b, False),
    "bfe.u32": _bits,
    "popc.b32": _ones,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
    "mad.lo.u32": _multiplied,
    "dp4a.u32.u32": _dp4a,
    "add.f32": _added,
    "add.rn.f16x2": _sum_of_halves,
    "cvt.f32.f16": _half,
    "cvt.rn.bf16x2.f32": _converted(torch.bfloat16),
    "cvt.rn.f16x2.f32": _converted(torch.float16),
    "fma.rn.bf16x2": _fused(torch.bfloat16),
    "fma.rn.f16x2": _fused(torch.float16),
}
