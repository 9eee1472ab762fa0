"""What linears on codebooks, trellises and sparse weights share: other processors' code, and blocks for torch."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from rhoc.runtime.kernels.cpu import streamed
from rhoc.runtime.kernels.cpu.codebook_linear import CpuCodebookLinear
from rhoc.runtime.kernels.cpu.sparse_linear import CpuSparseLinear
from rhoc.runtime.kernels.cpu.streamed import StreamedLinear, functions
from rhoc.runtime.kernels.cpu.trellis_linear import CpuTrellisLinear

from . import test_cpu_codebook as codebook
from . import test_cpu_sparse as sparse
from . import test_cpu_trellis as trellis
from .other_processors import compiled_without
from .streamed_cases import assert_accepted

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
pytestmark = pytest.mark.compiled(by=lambda: functions(CpuCodebookLinear.library))
WEIGHTS = {
    CpuCodebookLinear: (codebook.weight, ("aqlm-2x8", "higgs3", "kmeans4", "quip-sharp2", "quip-sharp4", "threes")),
    CpuSparseLinear: (sparse.weight, ("2of4", "2of4-int4", "2of4-ranked-int4", "blocks50", "index", "int3-asymmetric",
                                      "sparse50", "sparse75-int8", "sparse90-csr")),
    CpuTrellisLinear: (trellis.weight, ("1mad-3-13", "3inst-4-20", "qtip2-l16", "qtip3", "xor-1-4")),
}  # fmt: skip


def _like(kind: type[StreamedLinear], **options: object) -> StreamedLinear:
    made: StreamedLinear = type(kind.__name__, (kind,), options)()
    return made


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="flags of GCC and Clang for x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_other_instructions(kind: type[StreamedLinear], without: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the flag is one of x86")
    library = compiled_without(kind.library, without)
    assert isinstance(functions(library), ctypes.CDLL), functions(library)
    kernel = _like(kind, library=library)
    weight, names = WEIGHTS[kind]
    for name in names:
        for dtype in (FLOAT32, BFLOAT16):
            for shape in ((11, 240), (9, 1104)):
                call, stored, matrix = weight(name, shape, dtype)
                assert_accepted(kernel, call, stored, matrix, (1, 3, 7))
                restored = call.representation.restore(call.representation.unpack(stored, shape, dtype))
                decoded = kernel.decoded(call, stored).double()
                assert (decoded - restored.double()).abs().max() <= torch.finfo(
                    dtype
                ).eps * restored.abs().max()


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_blocks_of_rows_are_decoded_for_torch(
    kind: type[StreamedLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _like(kind, most_rows=lambda self, call: 0)
    weight, names = WEIGHTS[kind]
    for dtype in (FLOAT32, BFLOAT16, FLOAT16):
        for rows in (1, 4, 100):  # in a block of float32
            monkeypatch.setattr(streamed, "_BLOCK", rows * 240 * 4)
            call, stored, matrix = weight(names[0], (11, 240), dtype)
            assert_accepted(kernel, call, stored, matrix, (9, 16))
