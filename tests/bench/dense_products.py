"""The dense product that compressed ones are measured against: the fastest that torch has on this processor.

Frozen means that the weight was reordered for the processor once, as a deployed model has it. Where bfloat16 is
multiplied by the processor, that is the fastest for every number of rows. Elsewhere torch refuses to reorder it,
and its plain product in bfloat16, which reads half the bytes, is the fastest for one row, the frozen one in float32
for more: conversions are counted. Weights are rotated through more memory than the caches hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from timing import Case, Method, measure
from torch import Tensor

_COLD = 100e6  # bytes, past the last cache


def copies(nbytes: int, quick: bool) -> int:
    """How many weights of so many bytes no cache holds."""
    return 2 if quick else -(-int(_COLD) // nbytes)


class DenseProducts:
    """Products with one weight `[n, k]`, each in the way that is the fastest for its number of rows."""

    def __init__(self, weight: Tensor, quick: bool) -> None:
        self.weight, self.quick = weight, quick
        self._found: dict[int, str] = {}
        self._reordered: dict[tuple[int, torch.dtype], list[Tensor] | None] = {}

    def method(self, x: Tensor) -> Method:
        """The product for `x` `[m, k]`; ways are compared at the first call for a number of rows."""
        ways = self._ways(x)
        if len(x) not in self._found:
            timings = measure(Case("", ways), cuda=False, rounds=5, seconds=0.01 if self.quick else 0.05)
            self._found[len(x)] = min(timings, key=lambda way: timings[way].median)
        return ways[self._found[len(x)]]

    def way(self, x: Tensor) -> str:
        """The name of the way that was the fastest for this many rows."""
        self.method(x)
        return self._found[len(x)]

    def _ways(self, x: Tensor) -> dict[str, Method]:
        ways: dict[str, Method] = {}
        frozen = self._frozen(len(x), self.weight.dtype)
        if frozen is not None:
            ways["frozen"] = _product(x, frozen)
        if frozen is None or x.dtype == torch.float32:
            plain = self._plain
            ways["plain"] = lambda i: F.linear(x, plain[i % len(plain)])
        if frozen is None and (wide := self._frozen(len(x), torch.float32)) is not None:
            ways["frozen float32"] = _product(x, wide)
        return ways

    @cached_property
    def _plain(self) -> list[Tensor]:
        return [self.weight.clone() for _ in range(copies(self.weight.nbytes, self.quick))]

    def _frozen(self, rows: int, dtype: torch.dtype) -> list[Tensor] | None:
        """Weights reordered for a number of rows, or None where torch refuses to for this processor."""
        if (rows, dtype) not in self._reordered:
            weight, reorder = self.weight.to(dtype), torch.ops.mkldnn._reorder_linear_weight
            try:
                found = [reorder(weight.clone(), rows) for _ in range(copies(weight.nbytes, self.quick))]
            except RuntimeError as error:
                if "needs the cpu support" not in str(error):
                    raise
                found = None
            self._reordered[rows, dtype] = found
        return self._reordered[rows, dtype]


def _product(x: Tensor, weights: Sequence[Tensor]) -> Method:
    product, wide = torch.ops.mkldnn._linear_pointwise, weights[0].dtype

    def run(i: int) -> Tensor:
        result: Tensor = product(x.to(wide), weights[i % len(weights)], None, "none", [], "")
        return result.to(x.dtype)

    return run
