"""`rhoc search`: the best composite representation under a budget of bits, and the Pareto front to it.

Candidates are taken from the fewest bits up. Of each, what it could be worth at most is known before its
Gaussian error is: a grid loses at least what Shannon's bound 4^-b leaves, and a chain what any of its stages
does. A candidate that cannot beat what fewer bits give is never measured, so that the front is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...runtime.capacity import GaussianError, by_quadrature, monte_carlo
from ...runtime.errors import RequestError
from ...runtime.laws.multiplier import Multiplier
from ...runtime.laws.result import Fit
from ...runtime.marchenko_pastur import REFERENCE_SHAPE
from ...runtime.representation import Representation
from ..gaussian_errors import gaussian_error, shipped
from ..query import Format, Part, format_of
from ..spec import from_representation, load_spec
from .space import Composite, composites
from .voice import Voice, choose_voice

_ROUNDS = 4  # of Monte Carlo: a relative standard error near 1e-3, which moves rho in the fourth digit
_SHANNON = 4.0
_MORE = 1.05  # times the budget: what it costs to go a little above is said too


@dataclass(frozen=True)
class Found:
    """A representation on the front; error: of the whole, on Gaussian numbers; borrowed: as in a ranking."""

    representation: Representation
    bits: float
    multiplier: Multiplier
    error: GaussianError
    borrowed: bool = False

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        ends = self.multiplier.interval
        return {
            "representation": str(self.representation),
            "bits": self.bits,
            "rho": self.multiplier.value,
            "rho_interval": None if ends is None else list(ends),
            "gmse": self.error.value,
            "gmse_standard_error": self.error.standard_error,
            "borrowed": self.borrowed,
        }


@dataclass(frozen=True)
class Tried:
    """A candidate; rho: its own where its error was `measured`, else the most that it could be."""

    bits: float
    rho: float
    measured: bool


@dataclass(frozen=True)
class Search:
    """The front of weights, that of inputs where they were asked for, and both winners together.

    just_above: what a few per cent more bits would give, where that is more; tried: every candidate for the
    weights that could be priced.
    """

    voice: Voice
    bits: float
    input_bits: float | None
    weights: tuple[Found, ...]
    inputs: tuple[Found, ...]
    just_above: Found | None
    multiplier: Multiplier
    candidates: int
    measured: int
    unknown: tuple[dict[str, Any], ...]
    tried: tuple[Tried, ...] = ()

    def spec(self, name: str = "searched") -> dict[str, Any]:
        """The winner as a spec for all linear layers but `lm_head`."""
        rule: dict[str, Any] = {"targets": ["Linear"], "ignore": ["lm_head"]}
        rule["weights"] = str(self.weights[-1].representation)
        if self.inputs:
            rule["input_activations"] = str(self.inputs[-1].representation)
        document = {"version": 1, "name": name, "summary": f"rho {self.multiplier.value:.3f} predicted"}
        load_spec({**document, "rules": [rule]})  # what is handed out is right
        return {**document, "rules": [rule]}

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        ends = self.multiplier.interval
        return {
            "source": self.voice.source,
            "interval_note": self.voice.note,
            "at_most_bits": self.bits,
            "at_most_input_bits": self.input_bits,
            "rho": self.multiplier.value,
            "rho_interval": None if ends is None else list(ends),
            "rho_note": self.multiplier.note,
            "winner": self.weights[-1].to_document(),
            "input_winner": self.inputs[-1].to_document() if self.inputs else None,
            "spec": self.spec(),
            "just_above": None if self.just_above is None else self.just_above.to_document(),
            "front": [found.to_document() for found in self.weights],
            "input_front": [found.to_document() for found in self.inputs],
            "candidates": self.candidates,
            "measured": self.measured,
            "unknown": list(self.unknown),
        }


def search(
    bits: float,
    *,
    input_bits: float | None = None,
    also: Sequence[str] = (),
    rotate: bool = True,
    fit: Fit | None = None,
    source: str | None = None,
) -> Search:
    """The best representation of weights in at most `bits`, and of inputs in at most `input_bits`.

    also: specs whose weights compete besides. rotate: put a Hadamard rotation first, which costs no bits and
    changes no Gaussian error, but brings real weights near Gaussian ones.
    Raises RequestError when nothing fits in the budget, or when the fit cannot price what has no runs.
    """
    voice = choose_voice([_sample_format()], fit, source)
    if not voice.prices_errors:
        raise RequestError(
            "this fit prices only formats that it has runs of",
            where=voice.source,
            advice="fit the representation law (`rhoc fit --law representation`), or leave the fit out",
        )
    weights = _Front(voice, rotate)
    weights.look(composites(_MORE * bits))
    weights.add(_named(also, _MORE * bits))
    above = weights.cut(bits)
    inputs = _Front(voice, rotate, inputs=True)
    if input_bits is not None:
        inputs.look(composites(input_bits, inputs=True))
        inputs.check(input_bits)
    weights.check(bits)
    ends = [front.best[-1] for front in (weights, inputs) if front.best]
    return Search(
        voice=voice,
        bits=bits,
        input_bits=input_bits,
        weights=weights.found(),
        inputs=inputs.found(),
        just_above=above,
        multiplier=voice.multiplier(_together([format_ for _, _, format_, _ in ends])),
        candidates=weights.candidates + inputs.candidates,
        measured=weights.measured + inputs.measured,
        unknown=(*weights.unknown, *inputs.unknown),
        tried=tuple(weights.tried),
    )


Entry = tuple[float, Representation, Format, float]
"""Stored bits, the chain, what laws know of it, and rho."""


class _Front:
    """The Pareto front of bits and rho, as candidates come."""

    def __init__(self, voice: Voice, rotate: bool, inputs: bool = False) -> None:
        self.voice, self.rotate, self.inputs = voice, rotate, inputs
        self.best: list[Entry] = []
        self.unknown: list[dict[str, Any]] = []
        self.tried: dict[Tried, None] = {}  # in order, each once
        self.candidates = self.measured = 0

    def look(self, space: Sequence[Composite]) -> None:
        """Go through candidates from the fewest bits up."""
        self.candidates += len(space)
        for each in space:
            highest = self._rho(self._bounded(each))
            if highest is None:
                continue
            if self.best and highest <= self.best[-1][3]:
                self.tried[Tried(each.bits, highest, measured=False)] = None
                continue
            self.measured += 1
            self._enter(each.bits, each.rotated(self.rotate), self._measured(each))

    def add(self, named: Iterator[tuple[float, Representation, Format]]) -> None:
        """Let others compete, and sort the front anew."""
        entries = [(bits, chain, format_) for bits, chain, format_, _ in self.best] + list(named)
        self.best = []
        for entry in sorted(entries, key=lambda entry: (entry[0], str(entry[1]))):
            self._enter(*entry)

    def cut(self, bits: float) -> Found | None:
        """Take what is above a budget off the front, and say what the best of it is."""
        above = [entry for entry in self.best if entry[0] > bits + 1e-9]
        self.best = [entry for entry in self.best if entry not in above]
        return self._found(above[-1]) if above else None

    def check(self, bits: float) -> None:
        """Raises RequestError for an empty front."""
        if not self.best:
            reason = self.unknown[0]["reason"] if self.unknown else "nothing in the space is so small"
            raise RequestError(f"no representation in {bits:g} bits: {reason}", advice="raise the budget")

    def found(self) -> tuple[Found, ...]:
        """The front, with the error of each whole chain."""
        return tuple(self._found(entry) for entry in self.best)

    def _found(self, entry: Entry) -> Found:
        bits, chain, format_, _ = entry
        return Found(
            representation=chain,
            bits=bits,
            multiplier=self.voice.multiplier(format_),
            error=_error(Representation(chain.stages[len(chain.rotation.stages) :])),
            borrowed=any(part.borrowed for part in format_.parts),
        )

    def _enter(self, bits: float, chain: Representation, format_: Format) -> None:
        rho = self._rho(format_)
        if rho is None:
            return
        self.tried[Tried(bits, rho, measured=True)] = None
        if self.best and rho <= self.best[-1][3]:
            return
        if self.best and self.best[-1][0] == bits:
            self.best.pop()
        self.best.append((bits, chain, format_, rho))

    def _rho(self, format_: Format) -> float | None:
        """rho, or None with the reason kept, once for each."""
        try:
            return self.voice.multiplier(format_).value
        except RequestError as error:
            entry = {"format": " and ".join(part.family for part in format_.parts), "reason": error.message}
            if entry["format"] not in [known["format"] for known in self.unknown]:
                self.unknown.append(entry)
            return None

    def _measured(self, each: Composite) -> Format:
        """What laws know of a candidate."""
        parts = tuple(
            Part(stage.family, _error(Representation((stage,))).value) for stage in each.core.stages
        )
        whole = 0.0 if self.voice.by_parts else _error(each.core).value
        return self._format(str(each.core), parts, whole)

    def _bounded(self, each: Composite) -> Format:
        """The same with errors that it cannot be below."""
        parts = []
        if each.sparsity is not None:
            parts.append(Part(each.sparsity.family, _error(Representation((each.sparsity,))).value))
        if each.grid is not None:
            stored = Representation((each.grid,)).bits_per_weight(REFERENCE_SHAPE)
            parts.append(Part(each.grid.family, _SHANNON**-stored))
        whole = max(_SHANNON**-each.bits, *(part.gmse for part in parts), 0.0)
        return self._format("", tuple(parts), whole)

    def _format(self, name: str, parts: tuple[Part, ...], whole: float) -> Format:
        if self.inputs:
            return Format(name, gmse_input=whole, parts=parts)
        return Format(name, gmse_weight=whole, parts=parts)


@lru_cache(maxsize=4096)
def _error(representation: Representation) -> GaussianError:
    """By quadrature, as shipped, or roughly by Monte Carlo: the same digits every time."""
    if str(representation) in shipped():
        return gaussian_error(representation, verify=False)
    return by_quadrature(representation) or monte_carlo(representation, rounds=_ROUNDS)


def _together(formats: Sequence[Format]) -> Format:
    """Weights and inputs as one format."""
    return Format(
        name=" with inputs ".join(format_.name for format_ in formats),
        gmse_weight=max(format_.gmse_weight for format_ in formats),
        gmse_input=max(format_.gmse_input for format_ in formats),
        parts=tuple(part for format_ in formats for part in format_.parts),
    )


def _named(also: Sequence[str], bits: float) -> Iterator[tuple[float, Representation, Format]]:
    """Weights of specs that fit in the budget. Raises RequestError for a spec that is none."""
    for question in also:
        rules = load_spec(question).rules
        chain = rules[0].weight_representation if rules else Representation()
        stored = chain.bits_per_weight(REFERENCE_SHAPE)
        if chain.stages and stored <= bits:
            yield stored, chain, format_of(from_representation(chain))


def _sample_format() -> Format:
    """A format of both families, so that a published fit is chosen that has constants of both."""
    return Format("sample", 0.1, 0.0, (Part("sparse", 0.1), Part("scalar", 0.1)))
