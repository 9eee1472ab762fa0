"""What kernels are told of a stored matrix is what its stages decode, for every shipped format that is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rhoc import specs
from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Quantize, Sparsify

SHAPE = (40, 96)
CHAINS: dict[str, Representation] = {
    "int3-g20": Representation((Quantize(3, strategy="group", group_size=20),)),
    "int5": Representation((Quantize(5, strategy="channel", scale_dtype="float16"),)),
    "int4-asymmetric": Representation((Quantize(4, symmetric=False, strategy="group", group_size=32),)),
    "int3-asymmetric-rows": Representation((Quantize(3, symmetric=False, strategy="channel"),)),
    "int2-real-zero": Representation(
        (Quantize(2, symmetric=False, observer="hqq", zp_dtype="float16", strategy="group", group_size=32),)
    ),
    "fp8-blocks": Representation((Quantize(8, "float", strategy="block", block_structure=(16, 32)),)),
    "int4-tensor": Representation((Quantize(4),)),
    **{name: weights for name in specs.names() if (weights := shipped_weights(name)) and weights.stages},
}


def by_hand(matrix: StoredMatrix, stored: dict[str, Tensor]) -> np.ndarray:
    """The matrix in float64 from its bytes, number by number."""
    if matrix.scale is None:
        return stored["carry"].double().numpy().reshape(matrix.rows, matrix.columns)
    carry = stored["carry"].reshape(matrix.rows, -1).numpy()
    bits = np.unpackbits(carry, axis=-1, bitorder="little")[:, : matrix.columns * matrix.bits]
    codes = bits.reshape(matrix.rows, matrix.columns, matrix.bits) @ (1 << np.arange(matrix.bits))
    rows, columns = np.indices(codes.shape)
    shared = rows // matrix.scale.sharing.rows, columns // matrix.scale.sharing.columns
    scales = matrix.scales(stored).double().numpy()[shared]
    zeros = matrix.zeros(stored)
    if zeros is not None:
        return (codes - zeros.double().numpy()[shared]) * scales
    return np.array(matrix.levels)[codes] * scales


TOLD = {name for name, chain in CHAINS.items() if isinstance(stored_matrix(chain.core, SHAPE), StoredMatrix)}


@pytest.mark.parametrize("name", sorted(TOLD))
def test_a_matrix_by_hand_is_what_its_stages_decode(name: str) -> None:
    core = CHAINS[name].core
    matrix = stored_matrix(core, SHAPE)
    assert isinstance(matrix, StoredMatrix)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    code = core.encode(weight)
    inner = core if matrix.pattern is None else Representation(core.stages[1:])
    survivors = code if matrix.pattern is None else inner.encode(core.stages[0].encode(weight)[0])
    expected = inner.restore(survivors).double().reshape(matrix.rows, matrix.columns)
    np.testing.assert_allclose(by_hand(matrix, core.pack(code)), expected.numpy(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", [(8, 40), (2, 8, 40), (2, 3, 8, 40)])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(
    "sharing",
    [
        {"strategy": "tensor"},
        {"strategy": "channel"},
        {"strategy": "group", "group_size": 16},
        {"strategy": "block", "block_structure": (4, 16)},
    ],
    ids=lambda sharing: sharing["strategy"],
)
def test_zero_points_are_packed_along_their_last_dimension(
    sharing: dict[str, Any], bits: int, shape: tuple[int, ...]
) -> None:
    core = Representation((Quantize(bits, symmetric=False, **sharing),)).core
    stored = core.pack(core.encode(torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5))
    matrix = stored_matrix(core, shape)
    assert isinstance(matrix, StoredMatrix)
    found = matrix.zeros(stored)
    assert found is not None
    along = stored["0.scale"].shape[-1]
    stream = np.unpackbits(stored["0.zero_point"].numpy(), axis=-1, bitorder="little")[..., : along * bits]
    expected = stream.reshape(-1, bits) @ (1 << np.arange(bits))
    assert len(np.unique(expected)) > 1 or sharing["strategy"] == "tensor"
    np.testing.assert_array_equal(found.numpy(), expected.reshape(found.shape))


def test_most_scalar_formats_are_told() -> None:
    scalar = {n for n, c in CHAINS.items() if all(isinstance(s, Quantize | Sparsify) for s in c.core.stages)}
    assert scalar - TOLD <= {"nf4", "nf4-double"}, scalar - TOLD
    assert len(TOLD) > 50


@pytest.mark.parametrize(
    ("chain", "shape", "reason"),
    [
        (Representation(()), SHAPE, "dense is not one quantize stage, alone or after sparsify"),
        (Representation((Codebook(),)), SHAPE, "is not one quantize stage"),
        (CHAINS["int5"], (0, 4), "the weight has shape [0, 4], not a matrix's"),
        (CHAINS["int5"], (4,), "the weight has shape [4], not a matrix's"),
        (Representation((Quantize(4, step=0.5, offset=0.25),)), SHAPE, "is moved off zero"),
        (CHAINS["fp8-blocks"], (3, 8, 32), "blocks of 16 rows do not divide the 8 of each matrix"),
    ],
)
def test_reasons(chain: Representation, shape: tuple[int, ...], reason: str) -> None:
    found = stored_matrix(chain.core, shape)
    assert isinstance(found, str)
    assert reason in found
