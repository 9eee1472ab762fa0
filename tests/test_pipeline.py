"""The pass machinery: order from facts, its three errors, facts verified on results, promises checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from rhoc.passes.assign import Assign
from rhoc.passes.base import Broken, Fact, Keeps, Pass, PipelineError
from rhoc.passes.canonicalize import Canonicalize
from rhoc.passes.decode import Decode
from rhoc.passes.pack import Pack
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.project import Project


def holds(gm: fx.GraphModule) -> None:
    """A fact of every graph."""


RAW, COOKED, SERVED = (Fact(name, holds) for name in ("raw", "cooked", "served"))
Facts = frozenset[Fact]


def step(
    name: str,
    requires: set[Fact] = frozenset(),
    establishes: set[Fact] = frozenset(),
    breaks: set[Fact] = frozenset(),
) -> Pass:
    """A pass with the given facts that does nothing."""

    class Step(Pass):
        def rewrite(self, gm: fx.GraphModule) -> bool:
            return False

    Step.__name__ = name
    Step.requires, Step.establishes, Step.breaks = (frozenset(f) for f in (requires, establishes, breaks))
    return Step()


def order(*passes: Pass) -> list[str]:
    return [each.name for each in Pipeline(passes).ordered()]


def test_the_order_of_our_passes_is_pinned() -> None:
    for last in (Project(), Decode(), Pack()):
        assert order(last, Assign({}), Canonicalize()) == ["Canonicalize", "Assign", last.name]


def test_establishers_come_first_then_readers_then_breakers() -> None:
    eat = step("Eat", requires={COOKED}, breaks={RAW, COOKED})
    smell = step("Smell", requires={RAW})
    cook = step("Cook", requires={RAW}, establishes={COOKED})
    buy = step("Buy", establishes={RAW})
    assert order(eat, cook, smell, buy) == ["Buy", "Cook", "Smell", "Eat"]


def test_the_listing_decides_where_facts_do_not() -> None:
    names = ["Delta", "Alpha", "Charlie", "Bravo"]
    assert order(*(step(name) for name in names)) == names
    buy, cook = step("Buy", establishes={RAW}), step("Cook", requires={RAW})
    assert order(buy, cook, step("Sweep")) == ["Buy", "Cook", "Sweep"]


def test_facts_that_are_given_need_no_pass() -> None:
    reader = step("Reader", requires={RAW})
    assert Pipeline((reader,), given=frozenset({RAW})).ordered() == (reader,)


def test_a_fact_that_nobody_establishes() -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline((step("Pack", requires={RAW}),)).ordered()
    assert str(error.value) == "Pack requires 'raw', which no pass in this pipeline establishes"


def test_a_fact_that_two_passes_establish() -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline((step("One", establishes={RAW}), step("Two", establishes={RAW}))).ordered()
    assert str(error.value) == "'raw' is established twice, by One and by Two"


def test_a_circle_is_printed_with_the_fact_on_each_arrow() -> None:
    boil = step("Boil", requires={SERVED}, establishes={COOKED})
    serve = step("Serve", requires={COOKED}, establishes={SERVED})
    with pytest.raises(PipelineError) as error:
        Pipeline((boil, serve)).ordered()
    assert str(error.value) == (
        "these passes need each other: "
        "Boil -> (establishes 'cooked') -> Serve -> (establishes 'served') -> Boil"
    )


def test_a_circle_of_readers_and_breakers() -> None:
    one = step("One", requires={RAW}, breaks={COOKED})
    two = step("Two", requires={COOKED}, breaks={RAW})
    with pytest.raises(PipelineError, match=r"One -> \(reads 'raw' before it breaks\) -> Two"):
        Pipeline((one, two), given=frozenset({RAW, COOKED})).ordered()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def no_relu(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.target is torch.relu:
            raise Broken("a relu is left", at=f"%{node.name}")


SMOOTH = Fact("smooth", no_relu)
PROBE = (torch.linspace(-1, 1, 8).reshape(2, 4),)


@dataclass(frozen=True)
class Swap(Pass):
    """Replace one function by another, under any promise."""

    old: Callable[..., torch.Tensor]
    new: Callable[..., torch.Tensor]
    keeps: Keeps = "bits"  # type: ignore[misc]
    ran: list[str] = field(default_factory=list, compare=False)

    establishes: ClassVar[Facts] = frozenset()

    def rewrite(self, gm: fx.GraphModule) -> bool:
        found = [node for node in gm.graph.nodes if node.target is self.old]
        for node in found:
            node.target = self.new
        return bool(found)


@dataclass(frozen=True)
class Soften(Swap):
    establishes: ClassVar[Facts] = frozenset({SMOOTH})


@dataclass(frozen=True)
class Harden(Swap):
    requires: ClassVar[Facts] = frozenset({SMOOTH})


def soften(keeps: Keeps = "shapes") -> Soften:
    return Soften(torch.relu, torch.tanh, keeps)


def test_a_pass_that_breaks_a_fact_it_does_not_mention_is_named() -> None:
    gm = fx.symbolic_trace(Small())
    with pytest.raises(Broken) as error:
        Pipeline((soften(), Harden(torch.tanh, torch.relu))).run(gm)
    assert str(error.value) == "%relu: after Harden, 'smooth' no longer holds: a relu is left"


def test_a_pass_that_does_not_establish_its_own_fact_is_named() -> None:
    gm = fx.symbolic_trace(Small())
    with pytest.raises(Broken, match="after Soften, 'smooth' no longer holds"):
        Pipeline((Soften(torch.tanh, torch.relu),)).run(gm)


def identity_almost(x: torch.Tensor) -> torch.Tensor:
    """relu, wrong in the last bits."""
    return torch.relu(x) * (1 + 2 * torch.finfo(x.dtype).eps)


def first_row(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)[:1]


@pytest.mark.parametrize(
    ("new", "keeps", "message"),
    [
        (torch.tanh, "bits", r"Swap declares keeps='bits' but changed output 0: largest difference 0\.\d+"),
        (
            torch.tanh,
            "values",
            r"Swap declares keeps='values' but changed output 0: largest difference 0\.\d+",
        ),
        (
            identity_almost,
            "bits",
            r"Swap declares keeps='bits' but changed output 0: largest difference \d.*e-",
        ),
        (first_row, "shapes", r"Swap changed the shapes of the output from \[\(2, 4\)\] to \[\(1, 4\)\]"),
    ],
)
def test_a_lying_pass_is_named(new: Callable[..., torch.Tensor], keeps: Keeps, message: str) -> None:
    torch.manual_seed(0)
    gm = fx.symbolic_trace(Small())
    with pytest.raises(PipelineError, match=message):
        Pipeline((Swap(torch.relu, new, keeps),)).run(gm, probe=PROBE)


def test_promises_that_are_kept_and_promises_nobody_can_check() -> None:
    for new, keeps in ((identity_almost, "values"), (torch.tanh, "shapes")):
        gm = fx.symbolic_trace(Small())
        (record,) = Pipeline((Swap(torch.relu, new, keeps),)).run(gm, probe=PROBE)
        assert record.changed
    gm = fx.symbolic_trace(Small())
    assert Pipeline((Swap(torch.relu, torch.tanh, "bits"),)).run(gm)[0].changed  # no probe, no numbers


def test_the_record_says_what_was_done() -> None:
    gm = fx.symbolic_trace(Small())
    steps = Pipeline((soften(), Swap(torch.relu, torch.sigmoid))).run(gm, part="inner", probe=PROBE)
    assert [(s.part, s.name, s.changed) for s in steps] == [
        ("inner", "Soften", True),
        ("inner", "Swap", False),
    ]
    assert all(s.seconds > 0 for s in steps)
    assert str(steps[1]).startswith("Swap in inner: unchanged, ")
    lines = ["%x = input      f32[2,4]", "%1 = layer(%x)  f32[2,4]", "%2 = tanh(%1)   f32[2,4]", "return %2"]
    assert steps[0].listing.splitlines() == lines


def test_a_graph_that_a_pass_left_invalid_is_refused() -> None:
    class Dangling(Pass):
        def rewrite(self, gm: fx.GraphModule) -> bool:
            node = next(node for node in gm.graph.nodes if node.op == "call_module")
            node.target = "nowhere"
            return True

    with pytest.raises(RuntimeError, match="nowhere"):
        Pipeline((Dangling(),)).run(fx.symbolic_trace(Small()))
