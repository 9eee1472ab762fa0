"""Linears on codebooks in C++ on a CPU, held to their stored bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.codebooks.gaussian import gaussian_table
from rhoc.runtime.codebooks.lattices import lattice_table
from rhoc.runtime.errors import RequestError
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu.codebook_linear import CpuCodebookLinear
from rhoc.runtime.kernels.cpu.streamed import functions
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Quantize

from .streamed_cases import (
    Array,
    assert_accepted,
    assert_gradients,
    assert_shapes,
    codes,
    random_fields,
    scales,
)

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.compiled(by=lambda: functions(CpuCodebookLinear.library))
KERNEL = CpuCodebookLinear()
SHIPPED = ("aqlm-2x8", "kmeans1", "kmeans4", "higgs2", "higgs3", "higgs4", "quip-sharp2", "quip-sharp4")
FOUR = (1.0, -0.5, 0.25, 2.0, -3.0, 0.125, 0.7, 0.3)
STAGES = {
    "one-a-row": Codebook(1, nbits_per_codebook=3, scope="group", rows_per_codebook=1),
    "rows-of-seven": Codebook(2, nbits_per_codebook=4, scope="group", rows_per_codebook=7),
    "scalars": Codebook(1, nbits_per_codebook=8, codebook_dtype="float32"),
    "threes": Codebook(3, nbits_per_codebook=5, codebook_dtype="bfloat16"),
    "threes-twice": Codebook(3, 2, 7, strategy="group", group_size=10, observer="rms", scale_dtype="float16"),
    "fives-thrice": Codebook(5, 3, 6, composition="additive", observer="absmax", strategy="channel"),
    "product": Codebook(6, 2, 6, composition="product"),
    "product-groups": Codebook(
        8, 2, 6, composition="product", strategy="group", group_size=64, observer="rms"
    ),
    "product-of-eights": Codebook(16, 2, 8, composition="product"),
    "sixteen": Codebook(16, nbits_per_codebook=4),
    "twelve": Codebook(12, nbits_per_codebook=9),
    "sixteen-bits": Codebook(8, nbits_per_codebook=16),
    "d4": Codebook(4, nbits_per_codebook=11, source="d4"),
    "e8": Codebook(8, nbits_per_codebook=10, source="e8", strategy="channel"),
    "e8-twice": Codebook(8, 2, 8, source="e8"),
    "e8p-groups": Codebook(8, nbits_per_codebook=16, source="e8p", strategy="group", group_size=24),
    "e8p-product": Codebook(16, 2, 16, source="e8p", composition="product", strategy="channel"),
    "gaussian-groups": Codebook(2, nbits_per_codebook=6, source="gaussian", strategy="group", group_size=32),
    "table": Codebook(2, nbits_per_codebook=2, source="table", table=FOUR),
    "fours": Codebook(4, nbits_per_codebook=8),
}
CHAINS = {name: Representation((stage,)).core for name, stage in STAGES.items()}
for shipped in SHIPPED:
    weights = shipped_weights(shipped)
    assert weights is not None
    CHAINS[shipped] = weights.core


def e8p_points() -> Array:
    """The points of E8P by definition, in the order of codes (QuIP#, 2402.04396, section 4.2)."""
    digits = np.indices((3,) * 8).reshape(8, -1).T + 0.5
    norms = (digits**2).sum(1)
    short, long = digits[norms <= 10], digits[(norms == 12) & (digits.max(1) < 2)]
    sizes = np.concatenate([short, long[np.arange(29) * len(long) // 29]])
    code = np.arange(1 << 16)
    size, signs = sizes[code >> 8], 1.0 - 2 * (code[:, None] >> np.arange(1, 8) & 1)
    points = np.concatenate([size[:, :7] * signs, size[:, 7:]], 1)
    points[:, 7] *= np.where(points.sum(1) % 2 == 1, -1, 1)
    return np.asarray(points + np.where(code & 1, -0.25, 0.25)[:, None])


def books_of(stage: Codebook, stored: dict[str, Tensor]) -> Array:
    """Codebooks `[groups of rows, num_codebooks, entries, size]` in float64."""
    if "0.codebook" in stored:
        return np.asarray(stored["0.codebook"].double().numpy())
    parts = stage.num_codebooks if stage.composition == "product" else 1
    size, entries = stage.in_group_size // parts, 1 << stage.nbits_per_codebook
    if stage.table is not None:
        return np.array(stage.table).reshape(1, stage.num_codebooks, entries, size)
    if stage.source == "e8p":
        points = e8p_points()
    elif stage.source == "gaussian":
        table = gaussian_table(size, entries)
        assert table is not None
        points = table.double().numpy()
    else:
        points = lattice_table(stage.source, entries).double().numpy()
    assert stage.factors is not None
    return np.stack([points * factor for factor in stage.factors])[None]


def by_hand(core: Representation, stored: dict[str, Tensor], shape: tuple[int, int]) -> Array:
    """The matrix in float64 from its bits, vector by vector."""
    (stage,) = core.bound_stages
    assert isinstance(stage, Codebook)
    books, count = books_of(stage, stored), stage.num_codebooks
    vectors = -(-shape[1] // stage.in_group_size)
    code = codes(stored["carry"], stage.nbits_per_codebook, vectors * count).reshape(shape[0], vectors, count)
    rows = []
    for n, row in enumerate(code):
        book = books[n // (stage.rows_per_codebook or shape[0])]
        parts = [book[i][row[:, i]] for i in range(count)]
        vector = np.concatenate(parts, 1) if stage.composition == "product" else np.sum(parts, 0)
        rows.append(vector.ravel()[: shape[1]])
    return np.asarray(np.array(rows) * scales(stored, shape, stage.group_size))


def weight(name: str, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Call, dict[str, Tensor], Array]:
    core = CHAINS[name]
    stored = random_fields(core, shape, dtype)
    if "0.codebook" in stored:
        stored["0.codebook"] -= 1
    return Call("linear", core, shape, dtype, "cpu"), stored, by_hand(core, stored, shape)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_are_as_good_as_the_plain_version(name: str, dtype: torch.dtype) -> None:
    call, stored, matrix = weight(name, (40, 96), dtype)
    assert_accepted(KERNEL, call, stored, matrix, (1, 2, 5, 16, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_of_sizes_that_nothing_divides(name: str) -> None:
    for shape in ((37, 211), (31, 2 * 2048 + 72), (33, 5)):
        for dtype in (FLOAT32, BFLOAT16):
            call, stored, matrix = weight(name, shape, dtype)
            assert_accepted(KERNEL, call, stored, matrix, (1, 3, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_decoding_is_that_of_the_representation(name: str) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        call, stored, _ = weight(name, (37, 211), dtype)
        restored = call.representation.restore(call.representation.unpack(stored, call.shape, dtype))
        decoded = KERNEL.decoded(call, stored)
        assert decoded.dtype == dtype
        rounding = torch.finfo(dtype).eps if dtype == BFLOAT16 else 4 * torch.finfo(dtype).eps
        assert (decoded.double() - restored.double()).abs().max() <= rounding * restored.abs().max()


@pytest.mark.parametrize("name", ["kmeans1", "higgs3", "quip-sharp2", "threes-twice"])
def test_inputs_of_any_shape_gradients_and_many_rows(name: str) -> None:
    call, stored, matrix = weight(name, (24, 100), BFLOAT16)
    assert_shapes(KERNEL, call, stored)
    assert_accepted(KERNEL, call, stored, matrix, (KERNEL.most_rows(call) + 1,))
    call, stored, matrix = weight(name, (24, 100), torch.float16)
    assert_accepted(KERNEL, call, stored, matrix, (1, 5))
    call, stored, matrix = weight(name, (24, 100), FLOAT32)
    assert_gradients(KERNEL, call, stored, matrix)


def test_an_encoded_weight_is_multiplied_as_it_is_decoded() -> None:
    for name in ("kmeans4", "aqlm-2x8", "higgs2", "quip-sharp4"):
        core, x = CHAINS[name], torch.randn(48, 80, generator=torch.Generator().manual_seed(3))
        code = core.encode(x)
        call = Call("linear", core, (48, 80), FLOAT32, "cpu")
        result = KERNEL.run(call, torch.eye(80), core.pack(code), None)
        torch.testing.assert_close(result.T, core.decode(code), rtol=1e-5, atol=1e-5)


def test_reasons() -> None:
    call = Call("linear", CHAINS["kmeans1"], (8, 16), FLOAT32, "cpu")
    assert KERNEL.refuse(replace(call, device="cuda")) == "the device is cuda, and it needs cpu"
    assert "inputs are float64, not float32" in str(KERNEL.refuse(replace(call, dtype=torch.float64)))
    assert "not a matrix's" in str(KERNEL.refuse(replace(call, shape=(2, 8, 16))))
    long = replace(call, representation=Representation((Codebook(17),)).core)
    assert KERNEL.refuse(long) == "vectors of 17 numbers are longer than 16"
    other = replace(call, representation=Representation((Quantize(4),)).core)
    assert "is not one codebook stage" in str(KERNEL.refuse(other))


def test_fields_of_another_shape_are_named() -> None:
    call, stored, _ = weight("kmeans1", (8, 16), FLOAT32)
    with pytest.raises(RequestError, match="field 'carry' has shape"):
        KERNEL.run(call, torch.ones(1, 16), {**stored, "carry": stored["carry"][:4]}, None)
    del stored["0.codebook"]
    with pytest.raises(RequestError, match="is missing"):
        KERNEL.run(call, torch.ones(1, 16), stored, None)
