"""Linears on sparse weights in C++ on a CPU, held to their stored bits."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.errors import WorkError
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu.sparse_linear import CpuSparseLinear
from rhoc.runtime.kernels.cpu.streamed import functions
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.sparsity import Blocks, Columns, Csr, GroupIndex, Groups, PackedIndex, Rank, Rows
from rhoc.runtime.stages import Codebook, Quantize, Sparsify

from .streamed_cases import Array, assert_accepted, assert_gradients, assert_shapes, codes
from .test_stored_matrix import by_hand as survivors_by_hand

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.compiled(by=lambda: functions(CpuSparseLinear.library))
KERNEL = CpuSparseLinear()
SHIPPED = (
    *(
        "1of4",
        "2of4",
        "2of4-fp8",
        "2of4-int4",
        "2of4-int8",
        "2of4-nvfp4",
        "2of4-ranked-int4",
        "4of8",
        "sparse90",
    ),
    *(
        "4of8-pairs-int4",
        "blocks50",
        "gmp75-int4",
        "rows25",
        "sparse25",
        "sparse50",
        "sparse50-int4",
        "sparse90-csr",
    ),
    *("sparse50-rows", "sparse75-int8"),
)


def _chain(*stages: Sparsify | Quantize) -> Representation:
    return Representation(stages).core


def _groups(structure: str, storage: str | None = None, vector: int = 1) -> Sparsify:
    return Sparsify(sparsity_structure=structure, storage=storage, vector=vector)


ROW, INT4_ROWS = Sparsify(0.6, granularity="row"), Quantize(4, strategy="channel", scale_dtype="float16")
CHAINS = {
    "3:6": _chain(_groups("3:6")),
    "2:3": _chain(_groups("2:3")),
    "2:3-mask": _chain(_groups("2:3", "bitmask")),
    "4:8-rank": _chain(_groups("4:8", "rank")),
    "1:2": _chain(_groups("1:2")),
    "8:16-rank": _chain(_groups("8:16", "rank"), INT4_ROWS),
    "2:48-rank": _chain(_groups("2:48", "rank"), Quantize(4, strategy="tensor", scale_dtype="float16")),
    "4:80": _chain(_groups("4:80"), Quantize(3, strategy="group", group_size=4)),
    "3:80-rank": _chain(_groups("3:80", "rank")),
    "8:48-pairs-rank": _chain(_groups("8:48", "rank", 2)),
    "4:8-fours": _chain(_groups("4:8", vector=4)),
    "2:12-rank": _chain(_groups("6:12", "rank", 3)),
    "2:4-mask-int3": _chain(_groups("2:4", "bitmask"), Quantize(3, strategy="group", group_size=20)),
    "8:16": _chain(_groups("8:16"), INT4_ROWS),
    "30:80": _chain(_groups("30:80")),
    "column": _chain(Sparsify(0.3, "column")),
    "column-int4": _chain(Sparsify(0.3, "column"), INT4_ROWS),
    "row-int5": _chain(Sparsify(0.3, "row"), Quantize(5, strategy="channel")),
    "index": _chain(Sparsify(0.8, storage="index")),
    "index-rows": _chain(Sparsify(0.8, granularity="row", storage="index"), INT4_ROWS),
    "csr-int4": _chain(
        Sparsify(0.8, storage="csr"), Quantize(4, symmetric=False, strategy="group", group_size=32)
    ),
    "rows-int6": _chain(ROW, Quantize(6, strategy="channel")),
    "rows-asymmetric": _chain(ROW, Quantize(8, symmetric=False, strategy="channel")),
    "blocks-int4": _chain(Sparsify(0.4, "block:3x5"), Quantize(4, strategy="group", group_size=8)),
    "int3-asymmetric": _chain(Sparsify(0.5), Quantize(3, symmetric=False)),
    "int8": _chain(Sparsify(0.9), Quantize(8)),
    "int1": _chain(Sparsify(0.5), Quantize(1, grid="midrise")),
    "nearly-none": _chain(Sparsify(0.999)),
    "nearly-all": _chain(Sparsify(0.001)),
}
for shipped in SHIPPED:
    weights = shipped_weights(shipped)
    assert weights is not None
    CHAINS[shipped] = weights.core


def kept_of_groups(stage: Sparsify, stored: dict[str, Tensor], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The units that stay of n:m, from positions or from numbers of choices."""
    pattern, places = stage.pattern, stage.places
    assert isinstance(pattern, Groups)
    kept, units = pattern.n // pattern.vector, pattern.m // pattern.vector
    groups = shape[1] // pattern.m
    width = max(1, (units - 1).bit_length())
    if isinstance(places, Rank):
        choices = sorted(combinations(range(units), kept), key=lambda choice: choice[::-1])
        rank = codes(stored["0.rank"], places.bits, groups)
        inside = np.array(choices)[rank].reshape(shape[0], groups, kept)
    else:
        assert isinstance(places, GroupIndex)
        inside = codes(stored["0.index"], width, groups * kept).reshape(shape[0], groups, kept)
    mask = np.zeros((shape[0], groups, units), dtype=bool)
    np.put_along_axis(mask, inside, True, axis=-1)
    return mask.reshape(shape[0], -1)


def mask_of(stage: Sparsify, stored: dict[str, Tensor], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which numbers stay, from the bits of their places."""
    pattern, places = stage.pattern, stage.places
    if isinstance(places, Csr):
        bits = max(1, (shape[1] - 1).bit_length())
        offsets = stored["0.row_offsets"].numpy()
        mask = np.zeros(shape, dtype=bool)
        mask[
            np.repeat(np.arange(shape[0]), np.diff(offsets)), codes(stored["0.columns"], bits, offsets[-1])[0]
        ] = True
        return mask
    if isinstance(places, PackedIndex):
        pools = pattern.pools(shape)
        index = codes(stored["0.index"], max(1, (pools.units - 1).bit_length()), pools.kept)
        mask = np.zeros((len(index), pools.units), dtype=bool)
        np.put_along_axis(mask, index, True, axis=-1)
        return mask.reshape(shape)
    if isinstance(pattern, Groups) and not isinstance(places, Rank | GroupIndex):
        return codes(stored["0.mask"], 1, shape[1]).astype(bool)
    if isinstance(pattern, Groups):
        return kept_of_groups(stage, stored, shape).repeat(pattern.vector, -1)
    whole = {Rows: shape[:1], Columns: shape[1:]}.get(type(pattern), shape)
    if isinstance(pattern, Blocks):
        whole = (-(-shape[0] // pattern.rows), -(-shape[1] // pattern.columns))
    bits_of = codes(stored["0.mask"], 1, whole[-1]).astype(bool)
    if isinstance(pattern, Blocks):
        return bits_of.repeat(pattern.rows, 0).repeat(pattern.columns, 1)[: shape[0], : shape[1]]
    if isinstance(pattern, Rows):
        return np.broadcast_to(bits_of.reshape(-1, 1), shape)
    return np.broadcast_to(bits_of, shape)


def by_hand(core: Representation, stored: dict[str, Tensor], shape: tuple[int, int]) -> Array:
    """The matrix in float64: survivors, in order, where their places say."""
    matrix = stored_matrix(core, shape)
    assert isinstance(matrix, StoredMatrix)
    assert matrix.pattern is not None
    survivors = survivors_by_hand(matrix, stored).ravel()
    pattern, mask = matrix.pattern.pattern, mask_of(matrix.pattern, stored, shape)
    if not isinstance(pattern, Blocks):
        weight = np.zeros(shape)
        weight[mask] = survivors
        return weight
    rows, columns = pattern.rows, pattern.columns
    weight = np.zeros((-(-shape[0] // rows) * rows, -(-shape[1] // columns) * columns))
    at = 0
    for row in range(0, shape[0], rows):
        for column in range(0, shape[1], columns):
            if mask[row, column]:
                block = survivors[at : at + rows * columns].reshape(rows, columns)
                weight[row : row + rows, column : column + columns] = block
                at += rows * columns
    return weight[: shape[0], : shape[1]]


def weight(name: str, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Call, dict[str, Tensor], Array]:
    core = CHAINS[name]
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).to(dtype)
    stored = core.pack(core.encode(numbers))
    return Call("linear", core, shape, dtype, "cpu"), stored, by_hand(core, stored, shape)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_are_as_good_as_the_plain_version(name: str, dtype: torch.dtype) -> None:
    call, stored, matrix = weight(name, (40, 240), dtype)
    assert_accepted(KERNEL, call, stored, matrix, (1, 2, 5, 16, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_of_other_sizes(name: str) -> None:
    divided = isinstance(CHAINS[name].stages[0].pattern, Groups)  # type: ignore[attr-defined]
    for shape in ((37, 480 if divided else 211), (31, 4560 if divided else 4171)):
        for dtype in (FLOAT32, BFLOAT16):
            call, stored, matrix = weight(name, shape, dtype)
            assert_accepted(KERNEL, call, stored, matrix, (1, 3, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_decoding_is_that_of_the_representation(name: str) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        call, stored, _ = weight(name, (37, 240), dtype)
        restored = call.representation.restore(call.representation.unpack(stored, call.shape, dtype))
        assert torch.equal(KERNEL.decoded(call, stored), restored.to(dtype))


@pytest.mark.parametrize("name", ["2of4", "sparse50", "sparse90-csr", "sparse75-int8", "blocks50"])
def test_inputs_of_any_shape_gradients_and_many_rows(name: str) -> None:
    call, stored, matrix = weight(name, (24, 100), BFLOAT16)
    assert_shapes(KERNEL, call, KERNEL.prepare(call, stored))
    assert_accepted(KERNEL, call, stored, matrix, (KERNEL.most_rows(call) + 1,))
    call, stored, matrix = weight(name, (24, 100), torch.float16)
    assert_accepted(KERNEL, call, stored, matrix, (1, 5))
    call, stored, matrix = weight(name, (24, 100), FLOAT32)
    assert_gradients(KERNEL, call, stored, matrix)


def test_survivors_of_another_dtype_than_the_input() -> None:
    for stored_as in (torch.float16, BFLOAT16, FLOAT32):
        call, stored, matrix = weight("sparse50", (12, 211), stored_as)
        for dtype in (FLOAT32, BFLOAT16):
            assert_accepted(KERNEL, replace(call, dtype=dtype), stored, matrix, (1, 5))


def test_what_prepare_adds_is_a_number_a_row() -> None:
    for name in CHAINS:
        call, stored, _ = weight(name, (40, 240), FLOAT32)
        added = [
            t for key, t in KERNEL.prepare(call, stored).items() if key not in stored and key != "cpu.plan"
        ]
        assert all(tensor.numel() <= 41 for tensor in added)


def test_damaged_places_are_an_error() -> None:
    call, stored, _ = weight("sparse50", (12, 211), FLOAT32)
    stored["0.mask"][0, 0] ^= 1
    with pytest.raises(WorkError, match="damaged"):
        KERNEL.run(call, torch.ones(1, 211), stored, None)
    call, stored, _ = weight("sparse90-csr", (12, 211), FLOAT32)
    stored["0.row_offsets"][3] += 1000
    with pytest.raises(WorkError, match="damaged"):
        KERNEL.prepare(call, stored)


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (Representation((Quantize(4),)), "the matrix is not sparse"),
        (Representation((Sparsify(0.5), Codebook())), "is not one quantize stage, alone or after sparsify"),
        (
            _chain(Sparsify(0.5, "row", storage="index")),
            "stores the places of whole lines or blocks by index",
        ),
        (_chain(_groups("4:8", "bitmask", 2)), "has a bit for 2 numbers"),
    ],
)
def test_reasons(chain: Representation, reason: str) -> None:
    assert reason in str(KERNEL.refuse(Call("linear", chain.core, (16, 32), FLOAT32, "cpu")))
