"""The spec that an imported checkpoint follows: a rule for layers that are represented alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...runtime.packed import Packed
from ...runtime.plain import to_plain
from ..spec import Spec, load_spec


@dataclass
class Rules:
    """Layers as they are read, gathered by representation. `ignore` is that of the checkpoint's config."""

    ignore: tuple[str, ...] = ()
    _layers: dict[str, tuple[Packed, tuple[str, ...], list[str]]] = field(default_factory=dict)

    def add(self, path: str, packed: Packed, targets: tuple[str, ...] = ()) -> None:
        """A layer by its path; `targets` are those of its config group."""
        key = str((packed.representation, packed.slots.input, packed.slots.output))
        self._layers.setdefault(key, (packed, targets, []))[2].append(path)

    def spec(self) -> Spec:
        """Targets are those of the checkpoint where a group is one rule, and paths where it is several.

        The first rule that matches a layer wins: paths come first, then patterns, then classes.
        """
        written: list[tuple[int, dict[str, Any]]] = []
        for packed, targets, paths in self._layers.values():
            several = sum(1 for _, other, _ in self._layers.values() if other == targets) > 1
            named = not targets or several
            rule: dict[str, Any] = {
                "targets": paths if named else list(targets),
                "weights": to_plain(packed.representation),
            }
            if self.ignore and not named:
                rule["ignore"] = list(self.ignore)
            slots = {"input_activations": packed.slots.input, "output_activations": packed.slots.output}
            rule |= {name: to_plain(slot) for name, slot in slots.items() if not slot.is_dense}
            place = 0 if set(rule["targets"]) <= set(paths) else 2
            if place and all(target.startswith("re:") for target in targets):
                place = 1
            written.append((place, rule))
        rules = [rule for _, rule in sorted(written, key=lambda pair: pair[0])]
        return load_spec({"version": 1, "name": "imported", "rules": rules})
