"""Integer products on processors that multiply words and bytes, but do not add them up by fours: AVX2."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rhoc.runtime.kernels.cpu import int8_linear
from rhoc.runtime.kernels.cpu.int8_input import Codes
from rhoc.runtime.kernels.cpu.int8_layout import described
from rhoc.runtime.native.build import loaded
from rhoc.runtime.stages import Quantize

from .apart import survives
from .other_processors import compiled_without
from .test_cpu_int8 import BFLOAT16, INPUTS, KERNEL, WEIGHTS, Case, check, read_to_the_end, stored

INFO = Path("/proc/cpuinfo")
pytestmark = pytest.mark.skipif(
    not INFO.exists() or "avx2" not in INFO.read_text(), reason="instructions of processors with AVX2"
)


@cache
def library(decoding: str, flag: str) -> ctypes.CDLL:
    sources = int8_linear.sources(decoding)
    plain = replace(sources, flags=(*sources.flags, flag))
    found = loaded(compiled_without(sources, flag) if flag.startswith("-m") else plain)
    assert not isinstance(found, str), found
    return int8_linear.declared(found)


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_linear, "library", lambda decoding: library(decoding, "-mno-avx512f"))


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_every_weight(weight: Quantize) -> None:
    for rows in (1, 2, 3, 4, 5, 8, 33):
        check(Case(weight, rows=rows))
    check(Case(weight, INPUTS[14], rows=9, n=16, k=320, dtype=BFLOAT16))


@pytest.mark.parametrize("size", [4, 8, 12, 16, 24, 32, 160, 2080])
def test_groups_of_any_size(size: int) -> None:
    """Shorter than a vector, no multiple of one, longer than what is unpacked together; and of both sides."""
    grouped = Quantize(4, strategy="group", group_size=max(size, 8), dynamic=True)
    for bits in (3, 4, 8):
        weight = Quantize(bits, strategy="group", group_size=size)
        asymmetric = replace(weight, symmetric=False)
        for rows in (1, 3, 6):
            check(Case(weight, rows=rows, n=19, k=2113))
            check(Case(asymmetric, rows=rows, n=19, k=4200))
            check(Case(asymmetric, grouped, rows=rows, n=19, k=1100))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("size", [None, 8, 16, 32, 64, 128, 256, 512])
def test_codes_that_are_multiplied_where_they_lie(bits: int, size: int | None) -> None:
    """Pieces of a vector, whole vectors and several; rows that end within one; all that integers can be."""
    sharing = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    weights = [Quantize(bits, grid=grid, **sharing) for grid in ("midrise", "twos")[: 1 if bits == 1 else 2]]
    weights += [Quantize(4, "float", **sharing), Quantize(2, grid="ternary", **sharing)][: bits // 2]
    weights += [Quantize(bits, symmetric=False, **sharing)] if bits > 1 else []
    grouped = Quantize(4, strategy="group", group_size=max(size or 64, 8), dynamic=True)
    for weight in weights:
        for rows in (1, 2, 3):
            check(Case(weight, rows=rows, n=5, k=1100))
        check(Case(weight, grouped, rows=2, n=5, k=1100))


def test_any_number_of_rows() -> None:
    for rows in (*range(1, 41), 256, 261):
        check(Case(Quantize(4, strategy="group", group_size=32), rows=rows, n=21, k=100))
        check(Case(Quantize(8, grid="midrise", strategy="channel"), rows=rows, n=21, k=100))


@pytest.mark.parametrize("bits", range(1, 9))
def test_exact_sums_are_those_of_the_plain_code(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(Quantize(bits, symmetric=bits == 1, strategy="channel"), n=35, k=1300)
    inputs = [case.normal(rows, case.k) for rows in (1, 2, 4, 7, 20)]
    found = [KERNEL.run(case.call, x, stored(case), None) for x in inputs]
    monkeypatch.setattr(int8_linear, "library", lambda decoding: library(decoding, "-DRHOC_PLAIN"))
    for x, result in zip(inputs, found, strict=True):
        assert torch.equal(KERNEL.run(case.call, x, stored(case), None), result)


@pytest.mark.parametrize("size", [None, 16, 32, 128, 24])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_codes(bits: int, size: int | None) -> None:
    """Nothing overflows or saturates where all codes are the largest, in the longest rows that are summed whole."""
    weight = Quantize(bits, symmetric=False, strategy="group" if size else "channel", group_size=size)
    for k in (32768, 40000) if size is None else (1536,):
        case = Case(weight, n=2, k=k)
        fields, found = dict(stored(case)), described(case.call)
        assert not isinstance(found, str)
        for byte, zero in ((0xFF, 0), (0, 0xFF)):
            fields["carry"] = torch.full_like(fields["carry"], byte)
            fields["0.zero_point"] = torch.full_like(fields["0.zero_point"], zero)
            level = ((1 << bits) - 1) * (1 if byte else -1)
            scales = fields["0.scale"].double().reshape(2, -1)
            sharing = size or k
            columns = np.minimum(sharing, k - sharing * np.arange(scales.shape[1]))
            for rows, code in ((1, -128), (4, -128), (5, -128), (1, -127), (4, -127)):
                codes = torch.zeros(rows, found.input.stride, dtype=torch.int8)
                codes[:, :k] = code
                entered = Codes(codes, torch.ones(rows, 1), None)
                result = int8_linear.product(found, entered, fields, None, None, torch.empty(rows, 2))
                expected = float(code) * level * (scales * torch.from_numpy(columns)).sum(1)
                torch.testing.assert_close(result.double(), expected.expand(rows, -1), rtol=1e-6, atol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")
def test_nothing_is_read_past_the_end_of_a_weight() -> None:
    assert survives(read_to_the_end)
