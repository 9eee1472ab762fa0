"""Shipped specs by kind: those that do the same to the same slots, with other numbers.

What depends on a model and on stages alone, such as a graph, is checked for one spec of a kind by default and for
every spec in the slow suite.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from rhoc import specs
from rhoc.compiler.spec import load_spec

TOLD = ("kind", "type", "coder")  # entries that say what is done, not how much
NAMED = ("name", "summary", "version")  # entries that say nothing about it


def _without_numbers(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {k: v for k, v in node.items() if k in TOLD or isinstance(v, dict | list)}
        return {key: _without_numbers(value) for key, value in kept.items()}
    if isinstance(node, list):
        return [_without_numbers(entry) for entry in node if isinstance(entry, dict | list)]
    return node


def kind_of(spec: str) -> str:
    """The same text for specs of one kind."""
    document = {k: v for k, v in load_spec(spec).to_document().items() if k not in NAMED}
    return json.dumps(_without_numbers(document), sort_keys=True)


@cache
def one_of_each() -> frozenset[str]:
    """The first spec of every kind by name."""
    first: dict[str, str] = {}
    for name in sorted(specs.names()):
        first.setdefault(kind_of(name), name)
    return frozenset(first.values())


def of_a_kind(spec: str) -> object:
    """A case of a test: the first spec of a kind by default, the others in the slow suite."""
    return pytest.param(spec, marks=[] if spec in one_of_each() else [pytest.mark.slow])
