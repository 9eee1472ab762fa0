"""Passes in the order their facts ask for; every fact verified after every pass, every promise checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from ..runtime.structure import undisturbed
from .base import Broken, Fact, Pass, PipelineError
from .listing import listing

Probe = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """What one pass did to one graph: `part` is the module path of the graph, '' for the whole model;
    `listing` is the graph after it, `before` the graph before."""

    part: str
    name: str
    seconds: float
    changed: bool
    listing: str
    before: str = ""

    def __str__(self) -> str:
        where = f" in {self.part}" if self.part else ""
        return (
            f"{self.name}{where}: {'changed' if self.changed else 'unchanged'}, {1e3 * self.seconds:.1f} ms"
        )


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes. `given` are facts that hold before the first."""

    passes: tuple[Pass, ...]
    given: frozenset[Fact] = frozenset()

    def ordered(self) -> tuple[Pass, ...]:
        """The passes such that every fact is established before it is required and read before it is broken.

        Where facts leave a choice, the order of listing decides. Raises `PipelineError` when two passes
        establish a fact, nobody establishes one that is required, or the facts ask for a circle.
        """
        import networkx  # a quarter of a second, which commands that never compile should not pay

        graph: Any = networkx.DiGraph()
        graph.add_nodes_from(range(len(self.passes)))
        for earlier, later, reason in self.edges():
            graph.add_edge(earlier, later)
            reasons = graph.edges[earlier, later].setdefault("reasons", [])
            reasons.append(reason)
        try:
            order = list(networkx.lexicographical_topological_sort(graph))
        except networkx.NetworkXUnfeasible:
            circle = networkx.find_cycle(graph)
            raise PipelineError(f"these passes need each other: {self._arrows(graph, circle)}") from None
        return tuple(self.passes[i] for i in order)

    def edges(self) -> list[tuple[int, int, str]]:
        """Why one pass comes before another: (earlier, later, reason), by position in the listing."""
        return [*self._established_first(), *self._read_before_broken(), *self._exact_first()]

    def _established_first(self) -> Iterator[tuple[int, int, str]]:
        """What a pass requires, or follows where it is there, comes before it."""
        establishers = self._establishers()
        for later, reader in enumerate(self.passes):
            for fact in _sorted(reader.requires - self.given):
                if fact not in establishers:
                    message = f"{reader.name} requires '{fact}', which no pass in this pipeline establishes"
                    raise PipelineError(message)
                if establishers[fact] != later:
                    yield establishers[fact], later, f"establishes '{fact}'"
            for fact in _sorted(reader.follows - reader.requires):
                if establishers.get(fact, later) != later:
                    yield establishers[fact], later, f"establishes '{fact}' first"

    def _read_before_broken(self) -> Iterator[tuple[int, int, str]]:
        """What reads a fact comes before what breaks it."""
        for breaker, breaking in enumerate(self.passes):
            for position, reader in enumerate(self.passes):
                for fact in _sorted(breaking.breaks & reader.requires):
                    if position != breaker:
                        yield position, breaker, f"reads '{fact}' before it breaks"

    def _exact_first(self) -> list[tuple[int, int, str]]:
        """What keeps values changes parameters under passes that round them: it comes before."""
        kept = [i for i, each in enumerate(self.passes) if each.keeps == "values"]
        rounding = [i for i, each in enumerate(self.passes) if each.keeps == "shapes"]
        return [(a, b, "keeps values, and rounds nothing") for a in kept for b in rounding]

    def _establishers(self) -> dict[Fact, int]:
        found: dict[Fact, int] = {}
        for position, each in enumerate(self.passes):
            for fact in _sorted(each.establishes):
                if fact in found:
                    first = self.passes[found[fact]].name
                    raise PipelineError(f"'{fact}' is established twice, by {first} and by {each.name}")
                found[fact] = position
        return found

    def _arrows(self, graph: Any, circle: Sequence[tuple[int, int]]) -> str:
        text = self.passes[circle[0][0]].name
        for earlier, later in circle:
            text += f" -> ({', '.join(graph.edges[earlier, later]['reasons'])}) -> {self.passes[later].name}"
        return text

    def run(self, gm: fx.GraphModule, *, part: str = "", probe: Probe | None = None) -> tuple[Step, ...]:
        """Rewrite `gm` in place and say what was done.

        With a `probe` (example inputs), what each pass promises of the output is checked too. Raises `Broken`
        with the pass, the fact and the node when a fact no longer holds, `PipelineError` when a promise was
        not kept.
        """
        held, rounding = set(self.given), roundings(gm)
        outputs = _outputs(gm, probe) if probe is not None else []
        steps, text = [], listing(gm)
        for each in self.ordered():
            start = time.perf_counter()
            changed = each.rewrite(gm)
            if changed:
                gm.graph.lint()
                gm.recompile()
            held = (held | each.establishes) - each.breaks
            _verify(gm, each, held)
            if probe is not None:
                rounding = max(rounding, roundings(gm))
                outputs = _check_promise(gm, each, probe, outputs, rounding)
            seconds, before = time.perf_counter() - start, text
            text = listing(gm) if changed or probe is not None else text
            steps.append(Step(part, each.name, seconds, changed, text, before))
        return tuple(steps)


def _sorted(facts: Iterable[Fact]) -> list[Fact]:
    return sorted(facts, key=lambda fact: fact.name)


def _verify(gm: fx.GraphModule, each: Pass, held: Iterable[Fact]) -> None:
    for fact in _sorted(held):
        try:
            fact.verify(gm)
        except Broken as broken:
            message = f"after {each.name}, '{fact}' no longer holds: {broken.message}"
            raise Broken(message, at=broken.where) from None


def _outputs(gm: fx.GraphModule, probe: Probe) -> list[Tensor]:
    """The tensors that the graph returns for the probe in eval(); notes shapes on its nodes."""
    with torch.no_grad(), undisturbed(gm), torch.random.fork_rng():
        torch.manual_seed(0)
        result = ShapeProp(gm).propagate(*probe)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def roundings(gm: fx.GraphModule) -> float:
    """The rounding error of the coarsest dtype in which a graph computes, as far as its nodes tell; models
    that compute in float64 may well take their norms in float32."""
    found = (node.meta.get("tensor_meta") or node.meta.get("val") for node in gm.graph.nodes)
    kinds = {getattr(meta, "dtype", None) for meta in found}
    return max((torch.finfo(k).eps for k in kinds if k is not None and k.is_floating_point), default=0.0)


def _check_promise(
    gm: fx.GraphModule, each: Pass, probe: Probe, before: list[Tensor], rounding: float
) -> list[Tensor]:
    after = _outputs(gm, probe)
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise PipelineError(f"{each.name} changed the shapes of the output from {shapes[0]} to {shapes[1]}")
    checks: dict[str, Callable[[Tensor, Tensor], bool]] = {
        "bits": _equal,
        "values": partial(close, rounding=rounding),
        "shapes": _any,
    }
    # On an accelerator a fused kernel computes an activation before it rounds, and its parts after.
    fused = each.keeps == "bits" and any(tensor.device.type != "cpu" for tensor in after)
    same = checks["values" if fused else each.keeps]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if not same(old, new):
            largest = float((old.double() - new.double()).abs().max())
            raise PipelineError(
                f"{each.name} declares keeps={each.keeps!r} but changed output {number}: "
                f"largest difference {largest:.3g}"
            )
    return after


def close(a: Tensor, b: Tensor, rounding: float = 0.0) -> bool:
    """Whether two outputs have the same values: equal within a thousand roundings of the largest value, of
    their dtype or of `rounding` where that is coarser."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    rounding = max(rounding, torch.finfo(a.dtype).eps)
    finite = a[torch.isfinite(a)]
    tolerance = 1e3 * rounding * max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-30)
    return bool(torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN where the other is NaN."""
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _any(a: Tensor, b: Tensor) -> bool:
    return True
