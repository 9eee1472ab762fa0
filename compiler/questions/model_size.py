"""What a model takes in each format: stored bytes of all of it, and how many parameters are represented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...runtime.errors import RequestError
from ..compile import compile
from ..example import own_example
from ..model_reference import ModelReference
from ..query import is_embedding
from ..rules import DENSE
from .contender import Contender


@dataclass(frozen=True)
class Size:
    """nbytes: of all that is stored, embeddings too; params: N, without embeddings; represented: of them."""

    nbytes: int
    params: int
    represented: int


def sizes_of(model: str, formats: Sequence[Contender]) -> tuple[dict[str, Size], list[dict[str, Any]]]:
    """The size of a model in each format, by `explain`; and the formats that it refuses, with reasons.

    Raises RequestError for a model that is none.
    """
    module = ModelReference.parse(model).build()
    example = own_example(module)
    sizes: dict[str, Size] = {}
    without: list[dict[str, Any]] = []
    for each in formats:
        try:
            if each.spec is None:
                raise RequestError("its spec is not known", advice=f"write {each.name}=SPEC")
            sizes[each.name] = _size(compile(module, each.spec, example).explain().to_document())
        except RequestError as error:
            without.append({"format": each.name, "reason": str(error)})
    return sizes, without


def _size(document: dict[str, Any]) -> Size:
    """Raises RequestError where the model has several representations: one rho does not speak for them."""
    counted = [row for row in document["parameters"] if not is_embedding(row)]
    represented = [row for row in counted if _pair(row) != (DENSE, DENSE)]
    if len({_pair(row) for row in represented}) > 1:
        raise RequestError("this spec gives the model several representations", advice="ask `rhoc explain`")
    return Size(document["total_bytes"], _count(counted), _count(represented))


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["representation"], row["input_representation"]


def _count(rows: list[dict[str, Any]]) -> int:
    return sum(prod(row["shape"]) for row in rows)
