"""What the weights of a model may take: bytes, bits per weight, milliseconds.

>>> Budget.of("1.5 GiB").bytes
1610612736
>>> Budget.of(["12 MB", "3.5 bits"])
Budget(bytes=12000000, bits_per_weight=3.5, milliseconds=None)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

from ..runtime.errors import RequestError
from .hints import did_you_mean
from .plain import describe

_THOUSAND = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES: dict[str, int] = {
    "bytes": 1,
    "byte": 1,
    **{f"{prefix}b": factor for prefix, factor in _THOUSAND.items()},
    **{f"{prefix}ib": 1024 ** (position + 1) for position, prefix in enumerate("kmgt")},
}
_BITS = ("bit", "bits", "bits per weight", "bits/weight", "bpw")
_MILLISECONDS = {"ms": Fraction(1), "us": Fraction(1, 1000), "s": Fraction(1000)}
_EXAMPLES = 'write "12 MB", "1.5 GiB", "3.5 bits" (per weight), "2 ms", or a number of bytes'


@dataclass(frozen=True)
class Budget:
    """Upper limits; all that are given hold at once.

    `bytes` of all layers together; `bits_per_weight` on average over them; `milliseconds` of all layers one
    after the other, by a table of measured times.
    """

    bytes: int | None = None
    bits_per_weight: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        limits = {name: value for name, value in given.items() if value is not None}
        if not limits:
            raise ValueError(f"the budget limits nothing; {_EXAMPLES}")
        for name, value in limits.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; give a finite number, 0 or more")

    @classmethod
    def of(cls, value: object) -> Budget:
        """A budget from text, a number of bytes, a list of these, or a mapping with the names of the fields.

        Raises RequestError for what is none of these.
        """
        if isinstance(value, Budget):
            return value
        limits = _limits(value)
        try:
            return cls(**limits)  # type: ignore[arg-type]
        except ValueError as error:
            message, _, advice = str(error).partition("; ")
            raise RequestError(message, where="budget", advice=advice) from error

    def byte_limits(self, weights: int) -> dict[str, int]:
        """The limits on bytes by name, for this many weights."""
        limits = {} if self.bytes is None else {"bytes": self.bytes}
        if self.bits_per_weight is not None:
            limits["bits_per_weight"] = math.floor(Fraction(self.bits_per_weight) * weights / 8)
        return limits

    def __str__(self) -> str:
        parts = [] if self.bytes is None else [f"{self.bytes:,} bytes"]
        parts += [] if self.bits_per_weight is None else [f"{self.bits_per_weight:g} bits per weight"]
        parts += [] if self.milliseconds is None else [f"{self.milliseconds:g} ms"]
        return " and ".join(parts)


def _limits(value: object) -> dict[str, int | float]:
    if isinstance(value, Mapping):
        return _named(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return dict([_limit(value)])
    found: dict[str, int | float] = {}
    for item in value:
        name, limit = _limit(item)
        if name in found:
            raise RequestError(f"{name} is limited twice", where="budget", advice="give each limit once")
        found[name] = limit
    return found


def _named(value: Mapping[object, object]) -> dict[str, int | float]:
    known = [field.name for field in fields(Budget)]
    found: dict[str, int | float] = {}
    for name, limit in value.items():
        if name not in known:
            raise RequestError(
                f"a budget has no {name!r}", where="budget", advice=did_you_mean(str(name), known)
            )
        if limit is None:
            continue
        if isinstance(limit, int | float) and not isinstance(limit, bool) and name != "bytes":
            found[str(name)] = limit
            continue
        unit, number = _limit(limit)
        if unit != name:
            raise RequestError(f"{describe(limit)} does not limit {name}", where="budget", advice=_EXAMPLES)
        found[unit] = number
    return found


def _limit(value: object) -> tuple[str, int | float]:
    """The field and the value of one limit."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "bytes", value
    match = re.fullmatch(r"([0-9][0-9,_]*\.?[0-9]*|\.[0-9]+)\s*([A-Za-z/ ]+?)\s*", str(value).lstrip())
    if not isinstance(value, str) or match is None:
        raise RequestError(f"{describe(value)} is no budget", where="budget", advice=_EXAMPLES)
    number, unit = Fraction(re.sub("[,_]", "", match[1])), " ".join(match[2].lower().split())
    if unit in _BITS:
        return "bits_per_weight", float(number)
    if unit in _BYTES:
        return "bytes", math.floor(number * _BYTES[unit])
    if unit in _MILLISECONDS:
        return "milliseconds", float(number * _MILLISECONDS[unit])
    raise RequestError(f"{match[2]!r} is no unit of a budget", where="budget", advice=_EXAMPLES)
