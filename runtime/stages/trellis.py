"""Trellis-coded quantisation: a number's value depends on its own bits and on those before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..codebooks.scales import Scales, Strategy, check_sharing
from ..errors import RequestError
from ..stage import CARRY, Fields, Sized, Stage
from ..trellises.closed import closed_path, states_of
from ..trellises.codes import TABLE_STATE_BITS, CodeName, values
from ..trellises.viterbi import Bitshift
from .precision import wide

_MOST_STATE_BITS = 20


@dataclass(frozen=True)
class Trellis(Stage):
    """Give every number a few bits, and the value that a window of the bits so far stands for, times a scale.

    The bitshift trellis of QTIP (2406.11235, section 3): the state s = (s * 2^k + b) mod 2^L takes in the k
    bits b of each number along the last dimension, and a code says which value each of the 2^L states stands
    for. Decoding reads a window of L bits at every number, all at once. Encoding finds the shortest path
    (Viterbi), 2^L steps of work for each number, so it is slow by nature. Rows close on themselves: the
    windows of the first numbers reach into the last bits. So a row may have any length, and nothing but the
    bits is stored.

    Shapes: the tensor is `[..., n]`, and so is the carry, of `num_bits` bits each; the field `scale` is
    `[1]`, `[...]` or `[..., ceil(n / group_size)]`. A scale is the root mean square of what shares it.

    `num_bits` is k, the bits of a number, 1 to 4.
    `state_bits` is L, the bits of a state, from twice `num_bits` to 20; each one more doubles the work.
    `code` says what states stand for: `xor` is computed, the Gaussian quantile at a rank whose bits are
    parities of the state's bits; `table` is trained on Gaussian data and ships for states of 8, 10 and 12
    bits; `1mad` and `3inst` are the computed codes of QTIP.
    `strategy` says what shares a scale: `tensor`, `channel` (a vector along the last dimension) or `group`.
    `group_size` is the neighbours along the last dimension that share a scale; the last may be fewer.
    `scale_dtype` is how scales are stored; unset means the tensor's own dtype.
    """

    num_bits: int = 2
    state_bits: int = 16
    code: CodeName = "xor"
    strategy: Strategy = "tensor"
    group_size: int | None = None
    scale_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    kind: Literal["trellis"] = "trellis"

    family: ClassVar[str] = "vector"

    @property
    def sample_rows(self) -> int:
        return max(2, min(64, 1 << (17 - self.state_bits)))  # as many as are encoded in about a second

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 4:
            raise ValueError(f"num_bits must be between 1 and 4, got {self.num_bits}")
        least = max(2 * self.num_bits, 4)
        if not least <= self.state_bits <= _MOST_STATE_BITS:
            raise ValueError(
                f"state_bits must be between {least} and {_MOST_STATE_BITS} for {self.num_bits} bits, "
                f"got {self.state_bits}"
            )
        if self.code == "table" and self.state_bits not in TABLE_STATE_BITS:
            known = ", ".join(map(str, TABLE_STATE_BITS))
            raise ValueError(
                f"code 'table' has state_bits {known}, not {self.state_bits}; use one of these or code: xor"
            )
        check_sharing(self.strategy, self.group_size)

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape:
            raise RequestError(
                "a trellis runs along the last dimension, and a single number has none",
                advice="leave this tensor out with `ignore`",
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._encode(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        """The path of least weighted error; scales are those of `encode`."""
        return *self._encode(x, importance.expand_as(x)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        dtype = wide(fields["scale"].dtype)
        if not carry.numel():
            return torch.zeros(carry.shape, dtype=dtype, device=carry.device)
        states = states_of(carry, self.num_bits, self.state_bits)
        numbers = self._values(dtype, carry.device).index_select(0, states.flatten()).reshape(carry.shape)
        return numbers.mul_(self._scales.spread(fields["scale"].to(dtype), carry.shape[-1]))

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        stored = getattr(torch, self.scale_dtype) if self.scale_dtype else x.dtype
        return Sized(x.shape, torch.uint8), {"scale": Sized(self._scales.shape(x.shape), stored)}

    def widths(self) -> dict[str, int]:
        return {CARRY: self.num_bits}

    @property
    def _scales(self) -> Scales:
        return Scales(self.strategy, self.group_size, "rms")

    def _values(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return values(self.code, self.num_bits, self.state_bits).to(dtype=dtype, device=device)

    def _encode(self, x: Tensor, importance: Tensor | None) -> tuple[Tensor, Fields]:
        carry, layout = self.layout(Sized(tuple(x.shape), x.dtype))
        if x.is_meta or not x.numel():
            codes = torch.zeros(carry.shape, dtype=carry.dtype, device=x.device)
            return codes, {n: torch.zeros(f.shape, dtype=f.dtype, device=x.device) for n, f in layout.items()}
        numbers = x.detach().to(wide(x.dtype))
        scale = self._scale(numbers, layout["scale"].dtype)
        factors = self._scales.spread(scale.to(numbers.dtype), x.shape[-1])
        scaled = numbers / torch.where(factors > 0, factors, 1)
        weight = self._weight(factors, importance, scaled)
        trellis = Bitshift(self._values(numbers.dtype, x.device), self.num_bits)
        states = closed_path(trellis, scaled.reshape(-1, x.shape[-1]), weight)
        codes = (states & ((1 << self.num_bits) - 1)).to(torch.uint8)
        return codes.reshape(x.shape), {"scale": scale}

    def _scale(self, numbers: Tensor, stored: torch.dtype) -> Tensor:
        """Scales as stored; an error when that makes finite ones infinite."""
        exact = self._scales.of(numbers, 1.0)
        scale = exact.to(stored)
        if bool((torch.isinf(scale) & torch.isfinite(exact)).any()):
            raise RequestError(
                f"scales up to {float(exact.max()):.3g} do not fit in {str(stored)[6:]}",
                advice="choose scale_dtype: bfloat16 or float32",
            )
        return scale

    def _weight(self, factors: Tensor, importance: Tensor | None, scaled: Tensor) -> Tensor | None:
        """What the scaled error at each number counts in its row, `[rows, n]`; None where all count the same.

        Errors grow by the scale when decoded. Weights are brought to a mean of one, for the sake of rounding.
        """
        if importance is None and self.strategy != "group":
            return None
        largest = factors.amax()
        weight = (factors / torch.where(largest > 0, largest, 1)).square()
        if importance is not None:
            weight = weight * importance.to(scaled.dtype)
        weight = weight.expand_as(scaled).reshape(-1, scaled.shape[-1])
        mean = weight.mean(-1, keepdim=True)
        return weight / torch.where(mean > 0, mean, 1)
