"""`rhoc rank`: formats in order of worth per stored bit, per byte of a model, per training FLOP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ... import specs
from ...runtime.errors import RequestError
from ...runtime.laws.bootstrap import interval
from ...runtime.laws.multiplier import Multiplier
from ...runtime.laws.result import Fit
from ...runtime.laws.runs import Array
from .contender import Contender, Widths, contenders
from .cost_model import CostModel
from .voice import Voice, choose_voice, multipliers

if TYPE_CHECKING:
    from .model_size import Size

Per = Literal["bit", "byte", "flop"]
_MORE = 1.05  # times the budget
UNITS = {
    "bit": "dense parameters per stored bit of a weight",
    "byte": "dense parameters per stored byte of the model",
    "flop": "dense parameters per parameter, over the cost of training it relative to a dense one",
}


@dataclass(frozen=True)
class Worth:
    """A format with its multiplier and what it is worth: `scale` times rho, plus `offset`."""

    format: Contender
    multiplier: Multiplier
    scale: float
    offset: float = 0.0
    size: Size | None = None

    @property
    def value(self) -> float:
        """Worth, in the units of the question."""
        return self._of(self.multiplier.value)

    @property
    def draws(self) -> Array:
        """Bootstrap draws of it, joint with those of the others; empty where there are none."""
        return self.offset + self.scale * self.multiplier.draws

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, or None where the source gives none."""
        ends = self.multiplier.interval
        return None if ends is None else (self._of(ends[0]), self._of(ends[1]))

    def surely_above(self, other: Worth) -> bool:
        """Whether 95 % intervals tell the two apart: that of the difference where draws are joint."""
        if self.draws.size and other.draws.size:
            return interval(self.draws - other.draws)[0] > 0
        mine, theirs = self.interval, other.interval
        return mine is not None and theirs is not None and mine[0] > theirs[1]

    def _of(self, rho: float) -> float:
        return self.offset + self.scale * rho


@dataclass(frozen=True)
class Ranking:
    """Formats in order of worth, and those that could not be ranked, with the reasons.

    just_above: formats that a few per cent more bits would let in.
    """

    voice: Voice
    per: Per
    bits: float | None
    cost: CostModel
    worths: tuple[Worth, ...]
    unknown: tuple[dict[str, Any], ...]
    just_above: tuple[str, ...] = ()

    @property
    def level_with_best(self) -> tuple[str, ...]:
        """Formats that the intervals do not tell apart from the first."""
        first = self.worths[0]
        if first.interval is None:
            return ()
        others = [worth for worth in self.worths[1:] if worth.interval is not None]
        return tuple(worth.format.name for worth in others if not first.surely_above(worth))

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": self.voice.source,
            "interval_note": self.voice.note,
            "per": self.per,
            "unit": UNITS[self.per],
            "at_most_bits": self.bits,
            "cost": self.cost.to_document() if self.per == "flop" else None,
            "formats": [self._row(i) for i in range(len(self.worths))],
            "level_with_best": list(self.level_with_best),
            "just_above": list(self.just_above),
            "unknown": list(self.unknown),
        }

    def _row(self, place: int) -> dict[str, Any]:
        worth = self.worths[place]
        rho, ends = worth.multiplier.interval, worth.interval
        return {
            "rank": place + 1,
            "rank_interval": self._ranks(worth),
            "format": worth.format.name,
            "worth": worth.value,
            "worth_interval": None if ends is None else list(ends),
            "rho": worth.multiplier.value,
            "rho_interval": None if rho is None else list(rho),
            "rho_note": worth.multiplier.note,
            "borrowed": worth.format.borrowed,
            "bits_per_weight": worth.format.bits,
            "bits_per_input": worth.format.input_bits,
            "gmse_weight": worth.format.format.gmse_weight if worth.format.spec is not None else None,
            "total_bytes": worth.size and worth.size.nbytes,
            "params": worth.size and worth.size.params,
            "effective_parameters": worth.size and worth.value * worth.size.nbytes,
        }

    def _ranks(self, worth: Worth) -> list[int] | None:
        """The best and the worst rank that intervals leave open; None where any format has no interval."""
        if any(other.interval is None for other in self.worths):
            return None
        others = [other for other in self.worths if other is not worth]
        above = sum(other.surely_above(worth) for other in others)
        below = sum(worth.surely_above(other) for other in others)
        return [1 + above, len(self.worths) - below]


def rank(
    questions: Sequence[str],
    bits: float | None,
    per: Per,
    cost: CostModel,
    *,
    model: str | None = None,
    fit: Fit | None = None,
    source: str | None = None,
) -> Ranking:
    """Formats of at most `bits` stored bits per weight, most worth first.

    questions: shipped names, files, text forms or NAME=SPEC; none: the shipped formats, and of a fit that
    prices no others those with runs. model: whose bytes count, for `per` byte.
    Raises RequestError when nothing is left to rank.
    """
    if per == "byte" and model is None:
        raise RequestError("worth per byte is that of a model", advice="name it with --model")
    voice = None if fit is None else choose_voice([], fit, source)
    named = specs.names() if voice is None or voice.prices_errors else voice.names
    asked = contenders(questions or named, voice)
    left_out: list[dict[str, Any]] = []
    able = {name: each for name, each in asked.items() if _able(each, bits, per, left_out, bool(questions))}
    formats = {name: each.format for name, each in able.items()}
    voice = voice or choose_voice(list(formats.values()), source=source)
    known, unknown = multipliers(voice, formats)
    sizes: dict[str, Size] = {}
    if per == "byte" and model is not None:
        from .model_size import sizes_of  # compiles models, and takes a second to import

        sizes, unsized = sizes_of(model, [able[name] for name in known])
        unknown += unsized
        known = {name: known[name] for name in sizes}
    found = [_worth(able[name], rho, cost, per, sizes.get(name)) for name, rho in known.items()]
    worths = sorted(found, key=lambda worth: (-worth.value, worth.format.name))
    if not worths:
        reason = (unknown or left_out or [{"reason": f"none has at most {bits:g} bits"}])[0]["reason"]
        raise RequestError(f"no format can be ranked: {reason}", where=voice.source, advice="name others")
    above = (
        [] if bits is None else [n for n, each in asked.items() if bits < (each.bits or 0.0) <= _MORE * bits]
    )
    return Ranking(voice, per, bits, cost, tuple(worths), (*left_out, *unknown), tuple(above))


def _able(each: Contender, bits: float | None, per: Per, left_out: list[dict[str, Any]], asked: bool) -> bool:
    """Whether a format can be ranked at all; the reasons why not are added to `left_out`."""
    if each.bits is None and (bits is not None or per != "flop"):
        advice = f"its stored bits are not known; say which spec it is: {each.name}=SPEC"
        left_out.append({"format": each.name, "reason": advice})
        return False
    fits = bits is None or (each.bits or 0.0) <= bits
    if asked and not fits:
        left_out.append({"format": each.name, "reason": f"it has {each.bits:.4g} bits per weight"})
    return fits


def _worth(each: Contender, rho: Multiplier, cost: CostModel, per: Per, size: Size | None) -> Worth:
    if size is not None:
        scale, offset = size.represented / size.nbytes, (size.params - size.represented) / size.nbytes
        return Worth(each, rho, scale, offset, size)
    if per == "flop":
        dense = cost.training(replace(each, widths=Widths()))
        return Worth(each, rho, dense / cost.training(each))
    return Worth(each, rho, 1 / (each.bits or 1.0))
