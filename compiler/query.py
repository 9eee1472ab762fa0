"""Questions to laws: what is a format worth, and which loss does it give?

A fit answers from its own runs. Without one, published fits answer, and the answer says which one it speaks
from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

from .. import specs
from ..runtime.errors import RequestError
from ..runtime.laws.base import Features
from ..runtime.laws.compose import Composition, compose
from ..runtime.laws.composition import PRODUCT
from ..runtime.laws.effective import effective_multiplier
from ..runtime.laws.multiplier import Multiplier
from ..runtime.laws.predict import check_budget, extrapolation
from ..runtime.laws.predict import predict as predict_by_fit
from ..runtime.laws.published import PublishedFit
from ..runtime.laws.result import Fit
from ..runtime.representation import Representation
from ..runtime.stage import Stage
from .columns import features_of
from .composition import settled_rule
from .gaussian_errors import gaussian_error
from .hints import did_you_mean
from .published_fits import LIST_FITS, published_fits
from .rules import DENSE, Rule
from .spec import Spec, load_spec

SCALAR_SOURCE = "panferov-llama-c4"  # constants for scalar grids
MIXED_SOURCE = "panferov-fig7"  # constants for scalar grids and for sparsity, of one figure

_BORROWED = "a part of no published family is taken as a scalar format of the same Gaussian error"


@dataclass(frozen=True)
class Part:
    """One factor of a multiplier under a published law: a compression family, and its Gaussian error."""

    family: str
    gmse: float
    borrowed: bool = False  # no published fit has constants of its own family


@dataclass(frozen=True)
class Format:
    """What laws know of a format.

    name: as runs call it; gmse_weight, gmse_input: Gaussian errors of the whole chains; parts: one per stage
    that loses something; shipped: the shipped spec of the
    same stages; factors: names of the formats it is a product of, for composition.
    """

    name: str
    gmse_weight: float = 0.0
    gmse_input: float = 0.0
    parts: tuple[Part, ...] = ()
    shipped: str = ""
    factors: tuple[str, ...] = ()

    @classmethod
    def of_gmse(cls, gmse_weight: float, gmse_input: float = 0.0, family: str = "scalar") -> Format:
        """A format that is known by its errors alone."""
        parts = tuple(Part(family, error) for error in (gmse_weight, gmse_input) if error > 0)
        return cls(f"GMSE {gmse_weight:.4g}", gmse_weight, gmse_input, parts)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is lost."""
        return self.parts == () and self.gmse_weight == 0 and self.gmse_input == 0

    @property
    def features(self) -> dict[str, float]:
        """The columns that the representation law asks for."""
        return {"gmse_weight": self.gmse_weight, "gmse_input": self.gmse_input}


def format_of(spec: Spec, rule: Rule | None = None) -> Format:
    """What laws know of a rule of a spec, by default its first."""
    rule = rule or (spec.rules[0] if spec.rules else None)
    if rule is None:
        return Format(spec.name)
    weights, inputs = rule.weight_representation, rule.input_representation
    found = [part for chain in (weights, inputs) for part in _parts(chain)]
    return Format(
        name=spec.name,
        gmse_weight=gaussian_error(weights, verify=False).value,
        gmse_input=gaussian_error(inputs, verify=False).value,
        parts=tuple(found),
        shipped=_shipped_as().get((weights, inputs), ""),
    )


def predict(
    question: str | Spec | Format,
    params: float,
    tokens: float,
    *,
    fit: Fit | None = None,
    source: str | None = None,
    factors: Sequence[str] = (),
    rule: str = PRODUCT.rule.name,
    columns: Features | None = None,
) -> dict[str, Any]:
    """Loss and effective parameters of a format at N `params` and D `tokens`, as plain JSON.

    question: a spec, its name, or a representation the fit has runs of. fit: what answers; without one a
    published fit does, chosen by name with `source`. factors: representations of the fit whose product this
    format is, even when the fit has runs of the whole; by default the parts of its name between dashes, when
    the fit has runs of all of them and none of the whole. rule: how factors compose; the product by
    default, for no other is better on tables that it was not learned from, QuEST's among them.
    columns: what the law of a fit reads beside N, D and rho, by name (`group_size`, `weight_bits`, ...).
    Raises RequestError when nothing can answer.
    """
    check_budget(params, tokens)
    if fit is not None:
        format_ = _resolve(question, fit, known=bool(columns))
        features = _features(fit, format_, columns or {})
        by_size = fit.law.rho or not fit.law.tells_formats or format_.name == fit.law.baseline
        if (columns and not fit.law.rho) or not by_size:
            fit.check_usable()
            multiplier = effective_multiplier(fit, format_.name, features, params, tokens)
            composition = Composition(multiplier, ())
        elif columns and fit.law.prices_features:
            composition = Composition(fit.priced(format_.name, features), ())
        else:
            composition = _composition(fit, format_, factors, rule)
        found = predict_by_fit(fit, composition, params, tokens, features)
        return {"spec": format_.name, **found.to_document()}
    format_ = _resolve(question, None)
    multiplier, published = _published(format_, source)
    loss, why = published.loss(params, tokens, multiplier.value)
    interval = multiplier.interval
    return {
        "spec": format_.name,
        **multiplier.to_document(),
        "published": published.source,
        "params": params,
        "tokens": tokens,
        "loss": loss,
        "loss_reason": why,
        "loss_interval": None,
        "loss_interval_note": "no interval: published fits come without covariance",
        "effective_parameters": params * multiplier.value,
        "effective_parameters_interval": None if interval is None else [params * end for end in interval],
        "extrapolation": published.range and extrapolation(published.range, params, tokens).to_document(),
    }


def published_multiplier(
    spec: Spec, rule: Rule | None = None, tensor: str = "weights", source: str | None = None
) -> dict[str, Any]:
    """`rho`, `rho_interval` and `rho_source` of a rule by published fits; None and a reason where none knows.

    rho is that of weights and inputs together. It stands with the tensor that is represented, with the
    weights when both are.
    """
    rule = rule or (spec.rules[0] if spec.rules else None)
    second = rule is not None and tensor != "weights" and not rule.weight_representation.is_dense
    if second:
        return _nothing("counted with the weights")
    try:
        multiplier, published = _published(format_of(spec, rule), source)
    except RequestError as error:
        if source is not None:
            raise
        return _nothing(str(error))
    document = multiplier.to_document()
    shown = {key: document[key] for key in ("rho", "rho_interval", "rho_source", "rho_origin")}
    return {**shown, "rho_reason": "", "published": published.source}


def published_rho(question: str | Spec | Format, source: str | None = None) -> Multiplier:
    """The multiplier of a format by a published fit. Raises RequestError when none knows it."""
    return _published(_resolve(question, None), source)[0]


def effective_parameters(spec: Spec, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the represented model is worth in dense non-embedding parameters, from the rows of `explain`.

    Every parameter counts rho of its rule, 1 when dense; embeddings and `lm_head` are left out, as N leaves
    them out. All multipliers come from one published fit; None with a reason when no single fit knows all
    formats.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for row in document["parameters"]:
        if not is_embedding(row):
            counts[row["representation"], row["input_representation"]] += prod(row["shape"])
    known = {
        (str(r.weight_representation), str(r.input_representation)): format_of(spec, r) for r in spec.rules
    }
    used = [pair for pair in counts if pair != (DENSE, DENSE)]
    unknown = [pair for pair in used if pair not in known]
    multipliers = None if unknown else _on_one_scale([known[pair] for pair in used])
    if multipliers is None:
        reason = "no single published fit has a multiplier for every format in this model"
        return {"effective_parameters": None, "effective_parameters_reason": reason, "rho_source": None}
    rho = {(DENSE, DENSE): 1.0} | {pair: m.value for pair, m in zip(used, multipliers, strict=True)}
    return {
        "params": sum(counts.values()),
        "effective_parameters": sum(count * rho[pair] for pair, count in counts.items()),
        "effective_parameters_reason": "",
        "rho_source": multipliers[0].source if multipliers else "dense",
    }


def _features(fit: Fit, format_: Format, columns: Features) -> dict[str, float | str]:
    """The columns of a fit's law that are known of a format. Raises RequestError as `features_of`."""
    read = {column.name for column in fit.law.every_column}
    own = {name: value for name, value in format_.features.items() if name in read}
    return {"representation": format_.name, **own, **features_of(fit.law, format_.name, columns, fit.columns)}


def _resolve(question: str | Spec | Format, fit: Fit | None, *, known: bool = False) -> Format:
    """The format a question is about; known: its columns are given, so that the name alone will do."""
    if isinstance(question, Format):
        return question
    if isinstance(question, str) and fit is not None:
        named = any(name.endswith(f"[{question}]") for name in fit.parameters)
        if known or named or question in (*fit.rho, fit.law.baseline):
            return Format(question)
    if isinstance(question, str) and fit is not None and _factors(fit, question):
        return Format(question, factors=_factors(fit, question))
    return format_of(load_spec(question))


def _composition(fit: Fit, format_: Format, factors: Sequence[str], rule: str) -> Composition:
    """The multiplier of a format in a fit: the composite asked for, fitted, composed, by error, or dense."""
    fit.check_usable()
    if factors:
        return _composed(fit, format_.name, factors, rule)
    if format_.name in fit.rho:
        return Composition(fit.multiplier(format_.name), ())
    guessed = format_.factors or _factors(fit, format_.name)
    if guessed and not fit.law.prices_features:
        return _composed(fit, format_.name, guessed, rule)
    if format_.is_dense or fit.law.prices_features:
        return Composition(fit.priced(format_.name, format_.features), ())
    raise RequestError(
        f"this fit has no runs of {format_.name!r}, and no parts of it to compose",
        where=fit.data,
        advice=f"name factors among {', '.join(fit.rho) or 'none'}, train it, or fit the representation law",
    )


def _composed(fit: Fit, name: str, factors: Sequence[str], rule: str) -> Composition:
    """The composite of representations of a fit by a rule."""
    families = [_family(factor) for factor in factors] if rule != PRODUCT.rule.name else ()
    return compose([fit.multiplier(factor) for factor in factors], name, settled_rule(rule), families)


def _family(name: str) -> str:
    """The compression family of a representation: sparse where a shipped spec of its name zeroes weights."""
    if name not in specs.names():
        return "sparse" if name.startswith("sparse") else "scalar"
    return "sparse" if any(part.family == "sparse" for part in format_of(load_spec(name)).parts) else "scalar"


def _factors(fit: Fit, name: str) -> tuple[str, ...]:
    """The parts of a name between dashes, when there are several and the fit has runs of each."""
    parts = tuple(name.split("-"))
    return parts if len(parts) > 1 and all(part in fit.rho for part in parts) else ()


def _published(format_: Format, source: str | None) -> tuple[Multiplier, PublishedFit]:
    """A multiplier and the published fit it is from.

    Without a source: the table in which this very format is, else the constants of its family.
    Raises RequestError for a source that is unknown or cannot price the format.
    """
    fits = published_fits()
    if source is not None:
        if source not in fits:
            raise RequestError(
                f"no published fit is called {source!r}", advice=did_you_mean(source, fits, LIST_FITS)
            )
        return _from_source(fits[source], format_), fits[source]
    if format_.is_dense:
        return _from_source(fits[SCALAR_SOURCE], format_), fits[SCALAR_SOURCE]
    for fit in fits.values():
        if format_.shipped in fit.specs and fit.specs[format_.shipped].exact:
            return fit.spec_multiplier(format_.shipped), fit
    name = SCALAR_SOURCE if {part.family for part in format_.parts} <= {"scalar"} else MIXED_SOURCE
    return _from_source(fits[name], format_), fits[name]


def _from_source(fit: PublishedFit, format_: Format) -> Multiplier:
    """What one published fit says of a format: its own entry, else its constants."""
    if format_.is_dense:
        return Multiplier(
            format_.name, 1.0, fit.origin, (1.0, 1.0), 0.0, note="dense parameters are the unit"
        )
    if format_.shipped in fit.specs:
        return fit.spec_multiplier(format_.shipped)
    multiplier = fit.family_multiplier(format_.name, [(part.family, part.gmse) for part in format_.parts])
    if not any(part.borrowed for part in format_.parts):
        return multiplier
    return replace(multiplier, note=f"{multiplier.note}; {_BORROWED}")


def _on_one_scale(formats: Sequence[Format]) -> list[Multiplier] | None:
    """Multipliers of all formats from one published fit, or None."""
    for source in (None, SCALAR_SOURCE, MIXED_SOURCE):
        try:
            found = [_published(format_, source)[0] for format_ in formats]
        except RequestError:
            continue
        if len({multiplier.origin.fit for multiplier in found}) <= 1:
            return found
    return None


def _parts(chain: Representation) -> list[Part]:
    """A part per stage that loses something, by its error on Gaussian data."""
    return [_part(stage) for stage in chain.unwrapped if "lossless" not in stage.tags]


def _part(stage: Stage) -> Part:
    """A stage by its family; one without published constants counts as scalar, and says so (`borrowed`)."""
    family = stage.family if stage.family in ("sparse", "scalar") else "scalar"
    error = gaussian_error(Representation((stage,)), verify=False).value
    return Part(family, error, family != stage.family)


@lru_cache(maxsize=1)
def _shipped_as() -> Mapping[tuple[Representation, Representation], str]:
    """Shipped specs that published fits speak of, by what they do to weights and inputs."""
    named = {name for fit in published_fits().values() for name in fit.specs if name in specs.names()}
    rules = {name: load_spec(name).rules[0] for name in sorted(named)}
    return {(rule.weight_representation, rule.input_representation): name for name, rule in rules.items()}


def is_embedding(row: Mapping[str, Any]) -> bool:
    """Whether a row of `explain` is of an embedding or of `lm_head`, which N leaves out."""
    module = str(row["path"]).rpartition(".")[0]
    return str(row["op"]).lower() == "embedding" or module.rpartition(".")[2] == "lm_head"


def _nothing(reason: str) -> dict[str, Any]:
    """No multiplier, and why."""
    return {"rho": None, "rho_interval": None, "rho_source": None, "rho_origin": None, "rho_reason": reason}
