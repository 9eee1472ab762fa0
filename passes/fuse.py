"""What stands next to a packed linear made one operation with it, by a list of rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ..runtime.fused import gated_linear, linear_activation
from .base import Fact, Pass
from .canonicalize import Canonicalize
from .facts import PACKED
from .fuse_rule import FuseRule, Match, entering, is_packed_linear, packed_at
from .fuse_rules import RULES
from .reach import Reach, note

_DONE, _LEFT = "rhoc.fused", "rhoc.not_fused"
"""On a fused node, in words: what it is made of, and what rules could not add to it."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Replace what the rules match, rule by rule, by single operations that compute the same bits.

    A fused operation is where a kernel can do at once what stands apart otherwise, without reading and
    writing what lies between. Which kernel does it is chosen where it runs; the parts one after another are
    always possible. What became of every packed linear is noted, with the reasons.
    """

    rules: tuple[FuseRule, ...] = RULES

    requires: ClassVar[frozenset[Fact]] = frozenset({PACKED})

    @property
    def name(self) -> str:
        """With rules of one's own their names stand in it, so that a wrong one is found."""
        return "Fuse" if self.rules == RULES else f"Fuse({', '.join(rule.name for rule in self.rules)})"

    def rewrite(self, gm: fx.GraphModule) -> bool:
        changed = False
        for rule in self.rules:
            for node in _places(gm):
                found = None if node._erased else rule.match(gm, node)
                if isinstance(found, Match):
                    self._apply(gm, rule, found)
                    changed = True
                elif found is not None:
                    node.meta[_LEFT] = (*node.meta.get(_LEFT, ()), found)
        self._judge(gm)
        note(gm, self.name, _reaches(gm))
        if changed:
            Canonicalize().rewrite(gm)  # a parameter that two fused norms share is read by one node
        return changed

    def _apply(self, gm: fx.GraphModule, rule: FuseRule, match: Match) -> None:
        done, left = ([w for n in match.nodes for w in n.meta.get(key, ())] for key in (_DONE, _LEFT))
        fused = rule.apply(gm, match)
        fused.meta |= {_DONE: (*done, match.what), _LEFT: tuple(left)}

    def _judge(self, gm: fx.GraphModule) -> None:
        """Say of what was left why, as the graph is in the end."""
        for node in _places(gm):
            found = [rule.match(gm, node) for rule in self.rules]
            node.meta[_LEFT] = tuple(reason for reason in found if isinstance(reason, str))


def _places(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes that rules are asked about."""
    return [node for node in gm.graph.nodes if is_packed_linear(node) or entering(gm, node) is not None]


def _reaches(gm: fx.GraphModule) -> Iterator[Reach]:
    """For every packed weight of a linear: what it was fused with, and what not and why."""
    for node in gm.graph.nodes:
        if not (is_packed_linear(node) or node.target in (linear_activation, gated_linear)):
            continue
        around = [each for each in (node.args[0], node) if isinstance(each, fx.Node)]
        done, left = ([w for each in around for w in each.meta.get(key, ())] for key in (_DONE, _LEFT))
        what = "; ".join(dict.fromkeys(done + left)) or "no rule has a say in what is around it"
        for weight in node.all_input_nodes:
            if packed_at(gm, weight) is not None:
                yield Reach(str(weight.target), bool(done), what)
