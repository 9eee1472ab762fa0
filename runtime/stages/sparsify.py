"""Magnitude sparsity: the largest numbers stay, with a mask or positions beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Array, Source
from .base import Fields, Sized, Stage


@dataclass(frozen=True)
class Sparsify(Stage):
    """Keep the numbers of largest magnitude and hand them on; the rest decode to zero.

    `sparsity_structure: unstructured` with `sparsity: s` zeroes the fraction s of a tensor (the count is
    rounded to the nearest whole number); survivors are handed on in order as one vector `[k]`, beside a mask
    of one bit per position. `sparsity_structure: "n:m"` keeps the n largest of every m neighbours along the
    last dimension; survivors are handed on as `[..., size * n / m]`, with ceil(log2 m) bits of position each.
    """

    sparsity: float | None = None
    sparsity_structure: str = "unstructured"
    kind: Literal["sparsify"] = "sparsify"

    tags: ClassVar[frozenset[str]] = frozenset({"sparse", "idempotent"})

    def __post_init__(self) -> None:
        if self.sparsity_structure != "unstructured":
            kept, group = self._structure()
            implied = 1 - kept / group
            if self.sparsity is not None and not math.isclose(self.sparsity, implied):
                raise ValueError(f"{self.sparsity_structure} is {implied:g} sparse; leave `sparsity` out")
        elif self.sparsity is None or not 0 < self.sparsity < 1:
            raise ValueError(f"unstructured sparsity must be a fraction between 0 and 1, got {self.sparsity}")

    def _structure(self) -> tuple[int, int]:
        kept, separator, group = self.sparsity_structure.partition(":")
        if not separator or not kept.isdigit() or not group.isdigit():
            raise ValueError(
                f"sparsity_structure must be 'unstructured' or 'n:m', got {self.sparsity_structure!r}"
            )
        if not 0 < int(kept) < int(group) <= 256:
            raise ValueError(f"n:m needs 0 < n < m <= 256, got {self.sparsity_structure}")
        return int(kept), int(group)

    @property
    def structured(self) -> bool:
        """Whether this is n:m rather than unstructured."""
        return self.sparsity_structure != "unstructured"

    def check(self, shape: tuple[int, ...]) -> None:
        if self.structured and (not shape or shape[-1] % self._structure()[1]):
            last = shape[-1] if shape else 0
            raise RequestError(
                f"{self.sparsity_structure} sparsity does not divide the last dimension of {last}",
                advice="choose a structure whose m divides it, or leave this tensor out with `ignore`",
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        self.check(tuple(x.shape))
        return self._encode_groups(x) if self.structured else self._encode_all(x)

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        if not self.structured:
            mask = fields["mask"]
            return torch.zeros(mask.shape, dtype=carry.dtype, device=carry.device).masked_scatter(mask, carry)
        kept, group = self._structure()
        values = torch.unflatten(carry, -1, (-1, kept))
        index = torch.unflatten(fields["index"].long(), -1, (-1, kept))
        zeros = values.new_zeros(*values.shape[:-1], group)
        return zeros.scatter(-1, index, values).flatten(-2)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        if not self.structured:
            return Sized((self.kept_count(math.prod(x.shape)),), x.dtype), {
                "mask": Sized(x.shape, torch.bool)
            }
        survivors = (*x.shape[:-1], self.kept_count(x.shape[-1]))
        return Sized(survivors, x.dtype), {"index": Sized(survivors, torch.uint8)}

    def widths(self) -> dict[str, int]:
        return {"index": math.ceil(math.log2(self._structure()[1]))} if self.structured else {"mask": 1}

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Error of the zeroed numbers: E[x^2 (1 - keep(|x|))] (papers 8.1 for the unstructured limit).

        None for n:m after n:m, whose neighbours come from one group and are not independent draws.
        """
        if self.structured and any(isinstance(keep, KeepLargest) for keep in source.keeps):
            return None
        survivors = source.then(self._keep(source))
        return survivors, source.power - survivors.power

    def _encode_all(self, x: Tensor) -> tuple[Tensor, Fields]:
        flat = x.reshape(-1)
        count = self.kept_count(flat.numel())
        chosen = flat.abs().topk(count, sorted=False).indices
        survivors = flat.index_select(0, chosen.sort().values)
        return survivors, {"mask": _marked(flat, chosen).reshape(x.shape)}

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        self.check(tuple(x.shape))
        if not self.structured:
            flat = x.reshape(-1)
            chosen = flat.abs().topk(self.kept_count(flat.numel()), sorted=False).indices
            projected = torch.zeros_like(flat).index_copy_(0, chosen, flat.index_select(0, chosen))
            return projected.reshape(x.shape), {"mask": _marked(flat, chosen).reshape(x.shape)}
        kept, group = self._structure()
        groups = torch.unflatten(x, -1, (-1, group))
        index = groups.abs().topk(kept, dim=-1, sorted=False).indices
        projected = torch.zeros_like(groups).scatter_(-1, index, groups.gather(-1, index))
        return projected.reshape(x.shape), {"index": index.flatten(-2)}

    def kept(self, fields: Fields) -> Tensor:
        if not self.structured:
            return fields["mask"]
        kept, group = self._structure()
        index = torch.unflatten(fields["index"].long(), -1, (-1, kept))
        mask = torch.zeros(*index.shape[:-1], group, dtype=torch.bool, device=index.device)
        return mask.scatter_(-1, index, True).flatten(-2)

    def _encode_groups(self, x: Tensor) -> tuple[Tensor, Fields]:
        kept, group = self._structure()
        groups = torch.unflatten(x, -1, (-1, group))
        index = groups.abs().topk(kept, dim=-1, sorted=False).indices.sort(-1).values
        return groups.gather(-1, index).flatten(-2), {"index": index.flatten(-2).to(torch.uint8)}

    def kept_count(self, size: int) -> int:
        """How many of `size` numbers stay."""
        if self.structured:
            kept, group = self._structure()
            return size // group * kept
        return size - round(float(self.sparsity or 0.0) * size)

    def _keep(self, source: Source) -> KeepAbove | KeepLargest:
        if self.structured:
            return KeepLargest(*self._structure(), source)
        return KeepAbove(source.quantile(float(self.sparsity or 0.0)))

    def __str__(self) -> str:
        return f"sparsify({self.sparsity_structure if self.structured else f'{self.sparsity:g}'})"


def _marked(flat: Tensor, chosen: Tensor) -> Tensor:
    """Bool like `flat`, true at the chosen positions."""
    return torch.zeros(flat.shape, dtype=torch.bool, device=flat.device).index_fill_(0, chosen, True)


@dataclass(frozen=True)
class KeepAbove:
    """Survival above a magnitude threshold."""

    threshold: float

    @property
    def breaks(self) -> tuple[float, ...]:
        return (self.threshold,)

    def __call__(self, magnitude: Array) -> Array:
        return (magnitude > self.threshold).astype(np.float64)


@dataclass(frozen=True)
class KeepLargest:
    """Survival among the `kept` largest of `group` independent draws: fewer than `kept` others are larger."""

    kept: int
    group: int
    source: Source

    @property
    def breaks(self) -> tuple[float, ...]:
        return ()

    def __call__(self, magnitude: Array) -> Array:
        above = _upper_tail(self.source, magnitude.tobytes())
        others = self.group - 1
        terms = [math.comb(others, j) * above**j * (1 - above) ** (others - j) for j in range(self.kept)]
        return np.asarray(np.sum(terms, axis=0))


@lru_cache(maxsize=16)
def _upper_tail(source: Source, magnitudes: bytes) -> Array:
    """P(|X| > m) on a set of quadrature nodes, computed once per set."""
    return source.upper(np.frombuffer(magnitudes, dtype=np.float64))
