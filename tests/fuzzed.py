"""Spec documents at random: shipped ones mutated, and new ones grown from the words of the language."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import yaml

from rhoc import specs
from rhoc.compiler.documents import parse_document
from rhoc.runtime.estimators import ESTIMATORS
from rhoc.runtime.stages import STAGES

_HUGE = [0, -1, 1, 2**31, 2**63, 10**30, 1e308, -1e308, 0.5, 1e-300, float("inf"), float("nan")]
_WORDS = [
    "dense",
    "int4",
    "NVFP4",
    "group",
    "channel",
    "absmax",
    "mse",
    "e2m1",
    "2:4",
    "full",
    "",
    "~",
    "x" * 200,
]
_TEXTS = [
    "hadamard(128) >> quantize(int4)",
    "sparsify(0.5) + quantize(int2, group=64)",
    "(((((((((((((((((((((((((((((((((((((((",
    "product(4, left=int4, right=int4) + int2",
    "quantize(" * 40,
    "a" * 12_000,
    "int4 >> int4 >> int4",
    "sum(",
    "hadamard(128) >>",
]
_KINDS: dict[str, list[str]] = {
    declared.kind: [f.name for f in fields(declared)]  # type: ignore[arg-type]
    for declared in (*STAGES, *ESTIMATORS)
}


def documents(count: int, seed: int) -> Iterator[str]:
    """Texts of documents, the same for every seed."""
    chance = random.Random(seed)
    shipped = [specs.path(name).read_text(encoding="utf-8") for name in specs.names()]
    makers = [_cut, _mutated, _mutated, _grown, _aliased]
    for _ in range(count):
        yield chance.choice(makers)(chance, chance.choice(shipped))


def _cut(chance: random.Random, text: str) -> str:
    """A text with pieces left out, doubled or put elsewhere."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        piece = text[start : start + chance.randint(1, 40)]
        action = chance.choice(["cut", "double", "insert", "move"])
        if action == "cut":
            text = text[:start] + text[start + len(piece) :]
        elif action == "double":
            text = text[:start] + piece * chance.choice([2, 3, 50]) + text[start:]
        elif action == "insert":
            text = text[:start] + chance.choice(list("{}[]:,-&*!|>%@`\"'\t\n\x00é\U0001f600")) + text[start:]
        else:
            elsewhere = chance.randrange(len(text) + 1)
            text = text[:elsewhere] + piece + text[elsewhere:]
    return text


def _mutated(chance: random.Random, text: str) -> str:
    """A document in which a few values were replaced, removed or added."""
    document = copy.deepcopy(parse_document(text.encode(), "shipped.yaml").data)
    for _ in range(chance.randint(1, 3)):
        _mutate(chance, document)
    return yaml.safe_dump(document, sort_keys=chance.random() < 0.5)


def _mutate(chance: random.Random, node: Any) -> None:
    """One change somewhere below a node."""
    while isinstance(node, dict | list) and node:
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            node = inner
            continue
        if isinstance(node, dict) and chance.random() < 0.2:
            node[chance.choice([*_WORDS, *_KINDS, *_KINDS["quantize"]])] = _value(chance, 0)
        elif isinstance(node, dict) and chance.random() < 0.15:
            del node[key]
        else:
            node[key] = _value(chance, 0)
        return


def _value(chance: random.Random, depth: int) -> Any:
    """Any plain value, often a stage."""
    pick = chance.random()
    if pick < 0.3 and depth < 5:
        return _stage(chance, depth)
    if pick < 0.4 and depth < 5:
        return [_value(chance, depth + 1) for _ in range(chance.randint(0, 4))]
    if pick < 0.6:
        return chance.choice(_HUGE)
    if pick < 0.75:
        return chance.randint(-2, 300)
    return chance.choice([*_WORDS, *_TEXTS, True, False, None, *specs.names()])


def _stage(chance: random.Random, depth: int) -> dict[str, Any]:
    """A stage or estimator with some of its options set to anything."""
    kind = chance.choice(list(_KINDS))
    chosen = chance.sample(_KINDS[kind], chance.randint(0, len(_KINDS[kind])))
    return {"kind": kind, **{name: _value(chance, depth + 1) for name in chosen if name != "kind"}}


def _grown(chance: random.Random, text: str) -> str:
    """A document of the right outline and random content."""
    rule = {
        "targets": chance.choice(["Linear", ["re:.*"], [], "re:(", 3]),
        "weights": _value(chance, 0),
        chance.choice(["input_activations", "ignore", "estimator", "x"]): _value(chance, 0),
    }
    return yaml.safe_dump(
        {"version": chance.choice([1, 1, 1, 2, "1"]), "rules": chance.choice([rule, [rule]])}
    )


def _aliased(chance: random.Random, text: str) -> str:
    """Aliases inside aliases, or brackets inside brackets, up to bombs."""
    width, depth = chance.randint(1, 12), chance.randint(1, 12)
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * width) + "]" for i in range(1, depth)]
    bomb = "\n".join(lines)
    nested = "[" * chance.choice([3, 30, 3000]) + "]" * chance.choice([0, 3, 3000])
    return chance.choice(
        [text + "\n" + bomb, bomb, f"version: 1\nrules: {nested}", text + f"\nextra: {nested}"]
    )
