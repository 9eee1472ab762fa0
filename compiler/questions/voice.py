"""Who answers: one saved fit, or one published fit. Two are never mixed, for rho is not portable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...runtime.errors import RequestError
from ...runtime.laws import find_law
from ...runtime.laws.base import Features, Law
from ...runtime.laws.compose import compose
from ...runtime.laws.multiplier import Multiplier, Origin
from ...runtime.laws.published import PublishedFit
from ...runtime.laws.result import Fit, Range
from ...runtime.laws.runs import Array
from ..hints import did_you_mean
from ..published_fits import LIST_FITS, published_fits
from ..query import MIXED_SOURCE, SCALAR_SOURCE, Format, published_rho

_ERROR, _FAMILY = "gmse_weight", "family_weight"  # columns of laws that price any format


class Voice(ABC):
    """One fit that answers.

    Losses and multipliers have rows: row 0 is the answer, the others are bootstrap draws, where there are
    any.
    """

    @property
    @abstractmethod
    def source(self) -> str:
        """The fit it speaks from, in words."""

    @property
    @abstractmethod
    def note(self) -> str:
        """What its intervals are, in words."""

    @property
    @abstractmethod
    def range(self) -> Range | None:
        """What its runs cover; None where that was not published."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Formats that it knows by name: those with runs, or with published values."""

    @property
    @abstractmethod
    def prices_errors(self) -> bool:
        """Whether it knows the worth of any format by its Gaussian error."""

    @property
    @abstractmethod
    def by_parts(self) -> bool:
        """Whether a chain is worth the product of its stages, rather than what its whole error says."""

    @abstractmethod
    def multiplier(self, format_: Format) -> Multiplier:
        """rho of a format. Raises RequestError when it knows none."""

    @property
    @abstractmethod
    def law(self) -> Law:
        """Its law."""

    @property
    @abstractmethod
    def origin(self) -> Origin:
        """What its multipliers carry."""

    @abstractmethod
    def priced(self, name: str, features: Features) -> Multiplier:
        """rho of a format known by columns. Raises RequestError when its law has no such."""

    @property
    @abstractmethod
    def values(self) -> Mapping[str, Array]:
        """The law's parameters, each [rows, 1]."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """One more than there are draws."""

    def losses(
        self, params: Array, tokens: Array, multiplier: Multiplier, features: Features | None = None
    ) -> Array:
        """Loss at N, D, both [rows or 1, questions], and the law's columns: [rows, questions].

        Raises RequestError when it has no loss, but multipliers alone.
        """
        rho = _rows(multiplier.value, multiplier.draws)
        with np.errstate(over="ignore", divide="ignore"):
            found = np.asarray(self.law.loss(self.values, params, tokens, rho, features))
        return np.broadcast_to(found, (self.rows, found.shape[1]))

    @property
    def columns(self) -> Mapping[str, Features]:
        """Columns of formats whose runs all have the same."""
        return {}

    @property
    def told(self) -> tuple[str, ...]:
        """Formats that a law without multipliers tells apart: by parameters of their own (`w4` of `k[w4]`),
        or by the columns of their runs.
        """
        dense = self.columns.get(self.law.baseline, {})
        by_columns = [name for name, features in self.columns.items() if features != dense]
        indexed = [f"{p.name}[" for p in self.law.parameters if p.column == "representation"]
        found = [name.partition("[")[2][:-1] for name in self.values if name.startswith(tuple(indexed))]
        return () if self.law.rho else tuple(dict.fromkeys([*found, *by_columns]))


@dataclass(frozen=True)
class FittedVoice(Voice):
    """A saved fit. Raises RequestError for one that supports no statement."""

    fit: Fit

    def __post_init__(self) -> None:
        self.fit.check_usable()

    @property
    def source(self) -> str:
        return str(self.fit.origin)

    @property
    def note(self) -> str:
        if self.rows == 1:
            return "no intervals: the fit has no bootstrap draws"
        return (
            f"95 % intervals of {self.rows - 1} bootstrap draws of the fit; the law's form is taken as right"
        )

    @property
    def range(self) -> Range:
        return self.fit.range

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fit.rho) or tuple(dict.fromkeys((self.law.baseline, *self.told)))

    @property
    def prices_errors(self) -> bool:
        return _ERROR in self._columns

    @property
    def by_parts(self) -> bool:
        return _FAMILY in self._columns

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.fit.law.columns)

    def multiplier(self, format_: Format) -> Multiplier:
        """That of its runs, else by Gaussian error, else the product of the parts of its name.

        The baseline of a law without multipliers has 1.
        """
        fit, name = self.fit, format_.name
        if name in self.told:
            raise RequestError(
                f"the {fit.law.name} law has no multipliers: what a format is worth depends on N and D",
                where=fit.data,
                advice="ask rhoc predict, or rhoc plan",
            )
        if name in fit.rho:
            return fit.multiplier(name)
        if not fit.law.rho and name == fit.law.baseline:
            return Multiplier(name, 1.0, fit.origin, draws=np.ones(len(fit.draws)))
        if self.by_parts and format_.parts:
            parts = [
                fit.priced(part.family, {_ERROR: part.gmse, _FAMILY: part.family}) for part in format_.parts
            ]
            return compose(parts, name).multiplier
        if self.prices_errors:
            return fit.priced(name, format_.features)
        factors = name.split("-")
        if len(factors) > 1 and all(factor in fit.rho for factor in factors):
            return compose([fit.multiplier(factor) for factor in factors], name).multiplier
        raise RequestError(
            f"this fit has no runs of {name!r}",
            where=fit.data,
            advice=f"it has {', '.join(fit.rho or self.told) or 'no multipliers'}; write NAME=SPEC where "
            "names differ",
        )

    @property
    def law(self) -> Law:
        return self.fit.law

    @property
    def columns(self) -> Mapping[str, Features]:
        return self.fit.columns

    @property
    def origin(self) -> Origin:
        return self.fit.origin

    def priced(self, name: str, features: Features) -> Multiplier:
        return self.fit.priced(name, features)

    @cached_property
    def values(self) -> Mapping[str, Array]:
        drawn = self.fit.drawn
        return {name: _rows(value, np.asarray(drawn[name])) for name, value in self.fit.values.items()}

    @property
    def rows(self) -> int:
        return 1 + len(self.fit.draws)


@dataclass(frozen=True)
class PublishedVoice(Voice):
    """One published fit: no draws, since none was published with a covariance."""

    published: PublishedFit

    @property
    def source(self) -> str:
        found = self.published
        return f"{found.title}, arXiv {found.arxiv}, {found.where} [{found.name}]"

    @property
    def note(self) -> str:
        return (
            "intervals of rho where its spread was published, none of losses: covariances were not published"
        )

    @property
    def range(self) -> Range | None:
        return self.published.range

    @property
    def names(self) -> tuple[str, ...]:
        return ("dense", *self.published.specs, *self.told)

    @property
    def prices_errors(self) -> bool:
        return bool(self.published.families)

    @property
    def by_parts(self) -> bool:
        return True

    def multiplier(self, format_: Format) -> Multiplier:
        return published_rho(format_, self.published.name)

    def losses(
        self, params: Array, tokens: Array, multiplier: Multiplier, features: Features | None = None
    ) -> Array:
        if not self.has_losses:
            reason = self.published.loss(1e9, 1e10, 1.0)[1]
            raise RequestError(
                reason, advice=f"name a --source that does ({', '.join(with_losses())}), or a --fit"
            )
        return super().losses(params, tokens, multiplier, features)

    @property
    def law(self) -> Law:
        return find_law(self.published.law)

    @property
    def origin(self) -> Origin:
        return self.published.origin

    def priced(self, name: str, features: Features) -> Multiplier:
        return Multiplier(name, float(self.law.price(self.published.values, features)), self.origin)

    @cached_property
    def values(self) -> Mapping[str, Array]:
        data = {f"rho_D[{name}]": found.value for name, found in self.published.rho_data.items()}
        return {name: np.array([[value]]) for name, value in {**self.published.values, **data}.items()}

    @property
    def has_losses(self) -> bool:
        """Whether all constants of its law were published."""
        return not self.published.missing

    @property
    def rows(self) -> int:
        return 1


def choose_voice(
    formats: Sequence[Format], fit: Fit | None = None, source: str | None = None, *, losses: bool = False
) -> Voice:
    """The fit that is given, else the published fit that is named, else the one that knows most of `formats`.

    losses: only one whose law can be evaluated will do.
    Raises RequestError when both are given, or when no published fit has that name.
    """
    if fit is not None:
        if source is not None:
            raise RequestError("a fit and a published source are both given", advice="leave one of them out")
        return FittedVoice(fit)
    fits = published_fits()
    if source is not None:
        if source not in fits:
            raise RequestError(
                f"no published fit is called {source!r}", advice=did_you_mean(source, fits, LIST_FITS)
            )
        return PublishedVoice(fits[source])
    names = with_losses() if losses else (SCALAR_SOURCE, MIXED_SOURCE, *fits)
    voices = [PublishedVoice(fits[name]) for name in names]
    return max(voices, key=lambda voice: sum(_knows(voice, format_) for format_ in formats))


def with_losses() -> tuple[str, ...]:
    """Published fits whose law can be evaluated, those with formats first."""
    able = [fit for fit in published_fits().values() if PublishedVoice(fit).has_losses]
    return tuple(fit.name for fit in sorted(able, key=lambda fit: -len(fit.specs)))


def multipliers(
    voice: Voice, formats: Mapping[str, Format]
) -> tuple[dict[str, Multiplier], list[dict[str, Any]]]:
    """rho of every format that a voice knows, and the others, each with the reason."""
    known: dict[str, Multiplier] = {}
    unknown: list[dict[str, Any]] = []
    for name, format_ in formats.items():
        try:
            known[name] = voice.multiplier(format_)
        except RequestError as error:
            unknown.append({"format": name, "reason": str(error)})
    return known, unknown


def _knows(voice: Voice, format_: Format) -> bool:
    try:
        voice.multiplier(format_)
    except RequestError:
        return False
    return True


def _rows(value: float, draws: Array) -> Array:
    """A value and its draws as a column."""
    return np.concatenate([[value], draws])[:, None]
