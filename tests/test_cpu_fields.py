"""What C++ on a CPU reads of stored fields: no byte behind them, and numbers of any floating dtype."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from itertools import product
from types import ModuleType

import pytest
import torch

from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu import matrix as native
from rhoc.runtime.kernels.cpu.matrix import refusal
from rhoc.runtime.packed import Packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize, Sparsify

from . import test_cpu_codebook, test_cpu_sparse, test_cpu_trellis
from . import test_cpu_linear as scalar
from .apart import survives
from .guarded import guarded
from .streamed_cases import assert_accepted

BFLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float32, torch.float64
INT4 = Representation((Quantize(4),)).core

pytestmark = pytest.mark.compiled(by=lambda: refusal(Call("linear", INT4, (8, 8), FLOAT32, "cpu")))

SCALAR = ("int1-g7", "int2-hqq", "int3", "int4-g128", "int4-g2", "fp8", "nvfp4", "int3-asymmetric-rows")
FAMILIES: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "codebook": (
        test_cpu_codebook,
        ("aqlm-2x8", "e8p-groups", "higgs3", "product-groups", "scalars", "threes-twice"),
    ),
    "trellis": (test_cpu_trellis, ("1mad-2-16", "3inst-4-20", "groups", "table-3-12", "xor-1-4", "xor-3-17")),
    "sparse": (
        test_cpu_sparse,
        ("2of4", "2of4-ranked-int4", "blocks50", "rows25", "sparse50", "sparse75-int8", "sparse90-csr"),
    ),
}


def _scalar_products() -> None:
    for name, shape, dtype in product(SCALAR, ((40, 96), (2, 64), (1, 128), (3, 7)), (FLOAT32, BFLOAT16)):
        for rows in (1, 4, 5, 100):
            given = scalar._problem(name, shape, rows, dtype)
            fields = {key: guarded(tensor) for key, tensor in given.stored.items()}
            apart = replace(given, stored=fields, x=guarded(given.x), bias=guarded(given.bias))
            assert torch.equal(scalar._run(apart), scalar._run(given))
        which = torch.tensor([shape[0] - 1, 0, shape[0] - 1])
        decoded = [native.decoded(given.call, f, dtype, which) for f in (fields, given.stored)]
        assert torch.equal(*decoded)


def _streamed_products(family: str) -> None:
    module, names = FAMILIES[family]
    for name, shape, dtype in product(names, ((40, 96), (37, 212), (1, 64), (2, 256)), (FLOAT32, BFLOAT16)):
        call, stored, _ = module.weight(name, shape, dtype)
        fields = {key: guarded(tensor) for key, tensor in stored.items()}
        for rows in (1, 5, 150):
            x = torch.ones(rows, shape[1], dtype=dtype)
            results = [module.KERNEL.run(call, *given, None) for given in ((x, stored), (guarded(x), fields))]
            assert torch.equal(*(result.nan_to_num() for result in results))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")
@pytest.mark.parametrize("family", ["scalar", *FAMILIES])
def test_nothing_is_read_past_the_end_of_a_field(family: str) -> None:
    """In a process of its own, which would not survive it: a page that may not be read follows each field."""
    assert survives(partial(_streamed_products, family) if family in FAMILIES else _scalar_products)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fields_of_float64_are_read_as_numbers(family: str) -> None:
    """Scales, and survivors, of a weight that was packed as float64 and is used as float32."""
    module, names = FAMILIES[family]
    for name in names:
        call, stored, matrix = module.weight(name, (32, 160), FLOAT32)
        wide = {key: t.double() if t.is_floating_point() else t for key, t in stored.items()}
        assert_accepted(module.KERNEL, call, wide, matrix, (1, 5, 150))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", None])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_factor_of_scales_is_read_in_its_dtype(dtype: str | None, sparse: bool) -> None:
    inner = Representation((Quantize(8, "float", scale_dtype=dtype),))
    stage = Quantize(4, "float", strategy="group", group_size=16, scales=inner)
    chain = Representation((Sparsify(sparsity_structure="2:4"), stage) if sparse else (stage,)).core
    for packed_as in (FLOAT32, FLOAT64):
        weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)).to(packed_as)
        packed = Packed.of(weight, chain).to(FLOAT32)
        assert packed.selection("linear").kernel.name == ("cpu_sparse_linear" if sparse else "cpu_linear")
        expected = chain.restore(chain.unpack(packed.fields(), (24, 64), packed_as))
        torch.testing.assert_close(packed.linear(torch.eye(64)).T, expected.float(), rtol=2e-6, atol=0)
