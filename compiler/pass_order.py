"""In which order the passes of a spec run, and why: for people who read or extend it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from ..passes.assign import Assign
from ..passes.base import Fact, Pass
from ..passes.canonicalize import Canonicalize
from ..passes.catalog import PASSES, kind_of
from ..passes.decode import Decode
from ..passes.fuse import Fuse
from ..passes.pack import Pack
from ..passes.pipeline import Pipeline
from ..passes.project import Project
from .transform import complete, order, phases

_WHOLE = "over the whole model"
_FORMS: tuple[tuple[str, tuple[Pass, ...]], ...] = (
    ("in the train form", (Project(),)),
    ("in the packed form", (Pack(), Fuse())),
    ("in the reference form", (Decode(),)),
)


def known_passes() -> list[dict[str, str]]:
    """The passes that a spec can list, with their options and defaults."""
    return [
        {
            "kind": kind_of(each),
            "keeps": each.keeps,
            "options": ", ".join(_options(each)),
            "summary": _summary(each),
        }
        for each in PASSES
    ]


def all_passes() -> tuple[Pass, ...]:
    """Every pass that a spec can list, with its defaults."""
    return tuple(each() for each in PASSES)


def ordered_passes(listed: Sequence[Pass], budgeted: bool = False) -> list[dict[str, Any]]:
    """Every pass that runs where a spec lists these, in order: over the whole model first, then on each graph
    of a form. `budgeted`: the spec has a budget besides."""
    exact, rounding = phases(listed)
    rows = _rows(order(complete(exact)), _WHOLE, exact) if exact else []
    if rounding:
        after = ["after what keeps values, for it rounds"] if exact else []
        after += ["after the choice within the budget, which it rounds to"] if budgeted else []
        rows += _rows(order(complete(rounding)), _WHOLE, rounding, after)
    for stage, last in _FORMS:
        rows += _rows(Pipeline((Canonicalize(), Assign({}), *last)), stage, ())
    return rows


def _rows(
    pipeline: Pipeline, stage: str, listed: Sequence[Pass], after: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each pass; `after` are reasons for what rounds to come where it does."""
    edges = pipeline.edges()
    rows = []
    for each in pipeline.ordered():
        position = next(i for i, known in enumerate(pipeline.passes) if known is each)
        rows.append(
            {
                "pass": each.name,
                "stage": stage,
                "keeps": each.keeps,
                "listed": stage != _WHOLE or any(each is one for one in listed) or isinstance(each, Assign),
                "requires": _names(each.requires),
                "establishes": _names(each.establishes),
                "breaks": _names(each.breaks),
                "why": [*(after if each.keeps == "shapes" else ()), *_reasons(pipeline, edges, position)],
            }
        )
    return rows


def _reasons(pipeline: Pipeline, edges: Sequence[tuple[int, int, str]], position: int) -> list[str]:
    """Why a pass comes after others; the order of listing where no fact decides."""
    names = [each.name for each in pipeline.passes]
    found = [f"after {names[a]}, which {reason}" for a, b, reason in edges if b == position]
    return found or ["no fact asks for another place than where it is listed"]


def _names(facts: frozenset[Fact]) -> list[str]:
    return sorted(fact.name for fact in facts)


def _options(declared: Any) -> list[str]:
    return [
        f"{f.name}={f.default!r}" if f.default is not MISSING else f.name
        for f in fields(declared)
        if f.name != "kind"
    ]


def _summary(declared: type[Pass]) -> str:
    """The first sentence of a docstring."""
    text = " ".join((declared.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".")
