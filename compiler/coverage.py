"""Whether every target of a spec is good for something on a model: a rule that does nothing is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .hints import nearest
from .spec import Rule, Spec
from .targets import PATTERN, covers

_SHOWN = 3  # examples that a message names


@dataclass(frozen=True)
class Owner:
    """A module as rules see it: its path, and the names of its classes up to `Module`."""

    path: str
    class_names: tuple[str, ...]

    def __str__(self) -> str:
        return self.path or f"the model ({self.class_names[0]})"


Obstacles = Mapping[str, Mapping[str, str | None]]
"""By module path, each parameter it holds and why that one cannot be represented (None when it can)."""


def target_faults(spec: Spec, owners: Sequence[Owner], obstacles: Obstacles) -> list[str]:
    """One line for each target that matches no module, or none with a weight that could be represented.

    Rules are looked at one by one: a target whose modules are all taken by earlier rules is no fault. A
    spec that is dense throughout has nothing to match.
    """
    if all(rule.is_dense for rule in spec.rules):
        return []
    faults = []
    for index, rule in enumerate(spec.rules):
        for target in rule.targets:
            fault = _fault(rule, target, owners, obstacles)
            if fault is not None:
                faults.append(f"{rule.where or f'rules[{index}]'}: target {target!r} {fault}")
    return faults


def _fault(rule: Rule, target: str, owners: Sequence[Owner], obstacles: Obstacles) -> str | None:
    matched = [owner for owner in owners if covers((target,), owner.path, owner.class_names)]
    if not matched:
        return f"matches no module of this model; {_advice(target, owners, obstacles)}"
    kept = [owner for owner in matched if not covers(rule.ignore, owner.path, owner.class_names)]
    if not kept:
        return f"matches only what the rule ignores ({_some(matched)}); change targets or ignore"
    weights = {name: why for owner in kept for name, why in obstacles.get(owner.path, {}).items()}
    if rule.is_dense or not rule.representation("kv_cache").is_dense or None in weights.values():
        return None
    if not weights:
        return (
            f"matches {_some(kept)}, which hold no weights themselves; "
            f"name the class of the modules inside (Linear), or a pattern (re:{kept[0].path}.*)"
        )
    reasons = "; ".join(f"{name}: {why}" for name, why in list(weights.items())[:_SHOWN])
    return f"matches {_some(kept)}, none of whose weights can be represented ({reasons})"


def _advice(target: str, owners: Iterable[Owner], obstacles: Obstacles) -> str:
    """The nearest module path or class, or what there is to name."""
    holding = [owner for owner in owners if obstacles.get(owner.path)]
    classes = list(dict.fromkeys(owner.class_names[0] for owner in holding if owner.class_names))
    paths = [owner.path for owner in holding if owner.path]
    guess = None if target.startswith(PATTERN) else nearest(target, [*classes, *paths])
    known = f"its weights are held by {', '.join(classes)}" + (f", such as {paths[0]}" if paths else "")
    return f"did you mean {guess!r}? ({known})" if guess is not None else known


def _some(owners: Sequence[Owner]) -> str:
    text = ", ".join(str(owner) for owner in owners[:_SHOWN])
    return text if len(owners) <= _SHOWN else f"{text} and {len(owners) - _SHOWN} more"
