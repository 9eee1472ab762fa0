"""A palette: every number is one of few values, each a short sum of powers of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..given import Given, fields_of
from ..power_sums import PowerSums, join
from ..stage import CARRY, Fields, Sized, Stage

_VALUES = "table.values"


@dataclass(frozen=True)
class Palette(Stage):
    """Every number becomes the nearest of few values, and each value is a short sum of powers of two.

    Shapes: any. The carry are codes, one for each number; the field `table.values` `[num_values]` float32
    holds the values in order, the last one repeated where there are fewer. A value is 0, or plus or minus a
    sum of at most `max_order` different powers of two, none below 2^min_exponent. Multiplying by one is as
    many shifts and additions (weight fixing networks, Subia-Waud, Dasmahapatra 2210.13554). They are chosen
    greedily, the value that draws the most numbers first, as far as `delta` times their own magnitude;
    where none draws any, values of one power more are allowed and delta is doubled, in turns. Numbers that
    are such values already stay exactly what they are.

    `num_values` is the most values there may be; codes have ceil(log2 num_values) bits.
    `scope` says what shares the values: `tensor`, or `network`, all weights of a model that have this
    representation, with as many values as these need. `given` names them once they were chosen; specs leave
    it out.
    """

    max_order: int = 4
    min_exponent: int = -7
    delta: float = 0.1
    num_values: int = 256
    scope: Literal["tensor", "network"] = "tensor"
    given: str | None = None
    kind: Literal["palette"] = "palette"

    tags: ClassVar[frozenset[str]] = frozenset({"elementwise", "idempotent"})
    family: ClassVar[str] = "scalar"

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 4:
            raise ValueError(f"max_order must be between 1 and 4, got {self.max_order}")
        if not -24 <= self.min_exponent <= 24:
            raise ValueError(f"min_exponent must be between -24 and 24, got {self.min_exponent}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is a share of a number, between 0 and 1, got {self.delta}")
        if not 1 <= self.num_values <= 1 << 16:
            raise ValueError(f"num_values must be between 1 and 65536, got {self.num_values}")

    @property
    def scale_free(self) -> bool:
        return False

    @property
    def sums(self) -> PowerSums:
        """What may be a value."""
        return PowerSums(self.max_order, self.min_exponent)

    @property
    def shared_fields(self) -> tuple[str, ...]:
        return () if self.scope == "tensor" else (_VALUES.partition(".")[0] + ".",)

    @property
    def shared_names(self) -> tuple[str, ...]:
        return () if self.scope == "tensor" else (str(self.given or ""),)

    @property
    def named(self) -> Stage:
        return self if self.given is None else replace(self, given=str(self.given))

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        carry, fields = self.layout(Sized(tuple(x.shape), x.dtype))
        if x.is_meta or (not x.numel() and self.given is None):
            shaped = {n: torch.zeros(f.shape, dtype=f.dtype, device=x.device) for n, f in fields.items()}
            return torch.zeros(carry.shape, dtype=carry.dtype, device=x.device), shaped
        values = self._given(x.device) if self.given is not None else self._stored(x.detach())
        levels = _distinct(values.double())
        codes = torch.bucketize(x.detach().double().contiguous(), (levels[1:] + levels[:-1]) / 2)
        return codes.to(carry.dtype), {_VALUES: values}

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        values = fields[_VALUES]
        return values[carry.long()] if carry.numel() else values.new_zeros(carry.shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        code = torch.bool if self._bits == 1 else torch.uint8 if self._bits <= 8 else torch.int32
        return Sized(x.shape, code), {_VALUES: Sized((self.num_values,), torch.float32)}

    def widths(self) -> dict[str, int]:
        return {CARRY: self._bits}

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        if self.scope == "tensor":
            return self
        numbers = torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])
        found = self._chosen(numbers, exactly=None)
        return replace(self, num_values=len(found), given=Given.of({_VALUES: found}))

    def _chosen(self, numbers: Tensor, exactly: int | None) -> Tensor:
        """The values for some numbers `[n]`, float32 ascending: those that they are, where all are such sums
        and no more than `exactly` (None: however many); else at most `num_values`."""
        if not len(numbers):
            return numbers.new_zeros(1, dtype=torch.float32)
        present = _distinct(numbers.double())
        fits = exactly is None or len(present) <= exactly
        if not (fits and self.sums.admits(present)):
            present = self._most_drawing(numbers.double())
        return present.to(torch.float32)

    @property
    def _bits(self) -> int:
        return max(1, (self.num_values - 1).bit_length())

    def _most_drawing(self, numbers: Tensor) -> Tensor:
        """The values that numbers of this kind join, at most `num_values`, ascending."""
        found = join(numbers, numbers.abs(), len(numbers), self.delta, self.sums)
        values = _distinct(found.values)
        if len(values) > self.num_values:
            counts = torch.bincount(torch.searchsorted(values, found.values))
            most = counts.argsort(descending=True, stable=True)[: self.num_values]
            values = values[most].sort().values
        return values

    def _stored(self, x: Tensor) -> Tensor:
        """The values of one tensor, the last repeated."""
        found = self._chosen(x.flatten(), self.num_values)
        return torch.cat([found, found[-1:].expand(self.num_values - len(found))])

    def _given(self, device: torch.device) -> Tensor:
        fields = fields_of(self.given or "", device)
        if fields is None:
            raise RequestError(
                f"the values {self.given!r} are a name here, without their numbers",
                advice="leave `given` out: it names what was chosen for other weights",
            )
        return fields[_VALUES]


def _distinct(numbers: Tensor) -> Tensor:
    """Each number once, ascending."""
    found: Tensor = numbers.unique()  # type: ignore[no-untyped-call]
    return found
