"""Linears on every scalar format that ships, with answers in float64 from bytes that are read here.

The rule of acceptance is that of `kernel_cases`.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix

from .kernel_cases import Problem
from .test_stored_matrix import CHAINS, TOLD, by_hand

COLUMNS, ROWS = 128, 40


def _without_pattern(name: str) -> bool:
    matrix = stored_matrix(CHAINS[name].core, (ROWS, COLUMNS))
    return isinstance(matrix, StoredMatrix) and matrix.pattern is None


FORMATS = sorted(name for name in TOLD if _without_pattern(name))


@lru_cache(maxsize=8)
def _weight(name: str, dtype: torch.dtype, k: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    core, shape = CHAINS[name].core, (ROWS, k)
    matrix = stored_matrix(core, shape)
    assert isinstance(matrix, StoredMatrix)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(k))
    stored = core.pack(core.encode(weight.to(dtype)))
    return stored, torch.from_numpy(by_hand(matrix, stored))


def format_problem(
    name: str, dtype: torch.dtype, rows: int, *, k: int = COLUMNS, device: str = "cpu"
) -> Problem:
    """A product with seeded normal numbers, on a device."""
    stored, weight = _weight(name, dtype, k)
    generator = torch.Generator().manual_seed(rows)
    x, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((rows, k), (ROWS,)))
    call = Call("linear", CHAINS[name].core, (ROWS, k), dtype, device)
    exact = x.double() @ weight.T + bias.double()
    plain = DecodeLinear().run(call, x, stored, bias)
    on = {field: tensor.to(device) for field, tensor in stored.items()}
    return Problem(call, x.to(device), on, bias.to(device), exact.to(device), plain.to(device))
