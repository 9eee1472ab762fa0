"""Which weights have a factor in common: linear layers that read one node of a graph, or all of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.representation import Representation
from ..runtime.stage import Stage
from ..runtime.stages import Product
from .capture import Captured
from .decide import Decision


def grouped(captured: Captured, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """The decisions with a group wherever products share a right factor, and with the rank that they have.

    Siblings are found by what they read in the graph, not by their names; one that has none is factored by
    itself.

    Raises RequestError where weights cannot share, or factors would be no fewer numbers than the weights.
    """
    sources = _sources(captured)
    groups: dict[tuple[str, Representation], list[int]] = {}
    for position, decision in enumerate(decisions):
        scopes = {stage.scope for stage in _sharing(decision.assignment.weight)}
        if scopes:
            found = "network" if "network" in scopes else sources.get(decision.held.path)
            key = decision.held.path if found is None else found
            groups.setdefault((key, decision.assignment.weight), []).append(position)
    changed = list(decisions)
    for (name, _), members in groups.items():
        for position, decision in zip(members, _group(name, [decisions[m] for m in members]), strict=True):
            changed[position] = decision
    return tuple(changed)


def _group(name: str, members: Sequence[Decision]) -> list[Decision]:
    """The members of one group."""
    for decision in members:
        if decision.assignment.code is not None:
            raise RequestError(
                "calibration chose its code by itself, and its factor is to be shared",
                where=decision.held.path,
                advice="leave out the pass calibrate, or scope",
            )
    shapes = [decision.held.matrix_shape for decision in members]
    if len(members) == 1:
        return [_changed(members[0], _alone, "no other weight reads what it reads: factored by itself")]
    try:
        ranked = replaced(members[0].assignment.weight, lambda product: product.ranked(shapes))
    except RequestError as error:
        paths = ", ".join(decision.held.path for decision in members)
        raise error.at(paths) from None
    found = []
    for position, decision in enumerate(members):
        others = [d.held.path for d in members if d is not decision]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} others" if len(others) > 3 else "")
        counted = "" if not position else f", counted with {members[0].held.path}"
        what = f"shares its right factor with {shown}{counted}{_kept(ranked, shapes)}"
        held = replace(decision, group=name, leads=not position)
        found.append(_changed(held, lambda product: product.ranked(shapes), what))
    return found


def _kept(weight: Representation, shapes: Sequence[tuple[int, ...]]) -> str:
    """What share of the numbers of a group a low rank keeps, in words."""
    product = next(iter(_sharing(weight)))
    if product.rank is None or product.block is not None:
        return ""
    rows, columns = sum(prod(shape[:-1]) for shape in shapes), shapes[0][-1]
    share = product.rank * (rows + columns) / (rows * columns)
    return f": rank {product.rank}, {share:.3f} of their numbers"


def _changed(decision: Decision, change: Callable[[Product], Product], what: str) -> Decision:
    weight = replaced(decision.assignment.weight, change)
    assignment = replace(decision.assignment, weight=weight)
    return replace(decision, assignment=assignment, reason="; ".join(filter(None, (decision.reason, what))))


def _alone(product: Product) -> Product:
    return replace(product, scope=None)


def _sharing(weight: Representation) -> list[Product]:
    return [s for s in weight.all_stages() if isinstance(s, Product) and s.scope is not None]


def replaced(representation: Representation, change: Callable[[Product], Product]) -> Representation:
    """A representation with something else for each product that shares a factor, those inside others too."""

    def stage_of(stage: Stage) -> Stage:
        if isinstance(stage, Product) and stage.scope is not None:
            return change(stage)
        inner: dict[str, Any] = {}
        for each in fields(stage):  # type: ignore[arg-type]
            value = getattr(stage, each.name)
            if isinstance(value, Representation):
                inner[each.name] = replaced(value, change)
            elif isinstance(value, tuple) and any(isinstance(item, Representation) for item in value):
                inner[each.name] = tuple(replaced(item, change) for item in value)
        changed: Stage = replace(stage, **inner) if inner else stage  # type: ignore[type-var]
        return changed

    return Representation(tuple(stage_of(stage) for stage in representation.stages))


def _sources(captured: Captured) -> dict[str, str]:
    """What each weight of a linear operation is multiplied with, by its path in the model."""
    found: dict[str, str] = {}
    for fragment in captured.fragments:
        prefix = f"{fragment.path}." if fragment.path else ""
        for path, source in fragment.sources.items():
            found[prefix + path] = f"{prefix}{source}"
    return found
