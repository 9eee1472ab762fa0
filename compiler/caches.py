"""Which modules attend with represented keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..passes.project_cache import attention_nodes
from ..runtime.attending import Watching
from ..runtime.errors import RequestError
from ..runtime.projection import Project
from ..runtime.structure import undisturbed
from .capture import Captured
from .coverage import Owner
from .decide import class_names, first_rule
from .example import Example
from .spec import Rule, Spec


@dataclass(frozen=True)
class Cache:
    """A module whose keys and values are represented where it attends. `graph` is the path of the fragment
    that its code is part of, None when it runs as Python. `note` says what else is to be known."""

    path: str
    rule: Rule
    graph: str | None
    note: str = ""

    @property
    def projection(self) -> Project:
        """What keys and values go through."""
        return Project(self.rule.representation("kv_cache"), self.rule.estimators("kv_cache"))


UNSEEN = "that it attends was not seen: give example_inputs"


def decide_caches(captured: Captured, spec: Spec, example: Example | None) -> tuple[Cache, ...]:
    """The modules that rules with a `kv_cache` match and that attend.

    Raises RequestError when such a rule matches modules and none of them calls scaled_dot_product_attention.
    """
    asked = [i for i, rule in enumerate(spec.rules) if not rule.representation("kv_cache").is_dense]
    if not asked:
        return ()
    seen = _seen(captured, example)
    found, matched = [], dict.fromkeys(asked, 0)
    for path, module in captured.root.named_modules():
        index = first_rule(spec, Owner(path, class_names(module)))
        if index not in matched:
            continue
        matched[index] += 1
        found += list(_cache(captured, path, spec.rules[index], seen))
    for index in asked:
        if not any(cache.rule is spec.rules[index] for cache in found):
            raise RequestError(
                f"kv_cache: none of the {matched[index]} modules that it targets calls "
                "scaled_dot_product_attention",
                where=spec.rules[index].where or f"rules[{index}]",
                advice="name the modules that attend; in transformers load with attn_implementation='sdpa'",
            )
    inner = {cache.path for cache in found}
    return tuple(c for c in found if not any(p != c.path and _inside(p, c.path) for p in inner))


def _cache(captured: Captured, path: str, rule: Rule, seen: dict[str, int] | None) -> Iterator[Cache]:
    for fragment in captured.fragments:
        if _inside(path, fragment.path):
            relative = path[len(fragment.path) :].lstrip(".")
            if any(_inside(where, relative) for _, where in attention_nodes(fragment.graph)):
                yield Cache(path, rule, fragment.path)
            return
    if seen is None:
        yield Cache(path, rule, None, UNSEEN)
    elif seen.get(path):
        yield Cache(path, rule, None)


def _inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _seen(captured: Captured, example: Example | None) -> dict[str, int] | None:
    """How often each module attended when the model ran on the example; None without one."""
    if example is None:
        return None
    root, watching, handles = captured.root, Watching(), []

    def enter(path: str) -> Any:
        return lambda module, args: watching.running.append(path)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        watching.running.pop()

    for path, module in root.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), undisturbed(root), watching:
            example.run(root)
    finally:
        for handle in handles:
            handle.remove()
    return watching.calls
