"""Each pass on a small model as a golden listing, and each fact against a graph that violates it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.passes.assign import Assign
from rhoc.passes.assignment import Assignment, assign
from rhoc.passes.base import Broken, Pass
from rhoc.passes.canonicalize import Canonicalize
from rhoc.passes.container import Container
from rhoc.passes.decode import Decode
from rhoc.passes.facts import ASSIGNED, CANONICAL, DECODED, PACKED, TRAINABLE
from rhoc.passes.listing import listing
from rhoc.passes.pack import Pack
from rhoc.passes.part import part_of
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.project import Project
from rhoc.passes.sites import parameter_nodes, sites
from rhoc.runtime.estimators import StraightThrough, Trust
from rhoc.runtime.projection import Project as Projection
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify

WEIGHT = Representation((Hadamard(8), Quantize(4, strategy="channel")))
INPUT = Representation((Hadamard(8), Quantize(8, strategy="token", dynamic=True)))
OTHER = Representation((Sparsify(sparsity_structure="2:4"),))
BOTH = Assignment(WEIGHT, INPUT, (Trust(),), (StraightThrough(),))
ALONE = Assignment(WEIGHT)
TOKENS = torch.tensor([[0, 3, 1], [2, 2, 0]])


class Tiny(nn.Module):
    """Two linear modules on one input, a functional and an ATen call, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8, padding_idx=0)
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 8, bias=False)
        self.bare = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        h = F.gelu(self.query(h) * self.key(h))
        h = F.linear(weight=self.bare, input=h, bias=None)
        return self.head(torch.ops.aten.linear(h, self.bare))


def graph(*passes: Pass) -> fx.GraphModule:
    """The small model after some passes."""
    torch.manual_seed(0)
    model = Tiny().double()
    part = part_of(model, fx.symbolic_trace(model).graph)
    Pipeline(passes).run(part, probe=(TOKENS,))
    return part


SOME = {"query.weight": BOTH, "key.weight": BOTH, "bare": ALONE, "embed.weight": ALONE}


def test_canonicalize() -> None:
    gm = graph(Canonicalize())
    assert_expected_inline(
        listing(gm),
        """\
%tokens = input                            i64[2,3]
%1 = embedding(%tokens, embed.weight, 0)   f64[2,3,8]
%2 = linear(%1, query.weight, query.bias)  f64[2,3,8]
%3 = linear(%1, key.weight)                f64[2,3,8]
%4 = mul(%2, %3)                           f64[2,3,8]
%5 = gelu(%4)                              f64[2,3,8]
%6 = linear(%5, bare)                      f64[2,3,8]
%7 = linear(%6, bare)                      f64[2,3,8]
%8 = linear(%7, embed.weight)              f64[2,3,6]
return %8""",
    )
    assert list(gm.state_dict()) == list(Tiny().state_dict())


def test_assign() -> None:
    assert_expected_inline(
        listing(graph(Canonicalize(), Assign(SOME))),
        """\
%tokens = input                                                                                                                                             i64[2,3]
%1 = embedding(%tokens, embed.weight, 0)   hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%2 = linear(%1, query.weight, query.bias)  hadamard(8) >> quantize(int4, twos, channel, absmax) | input hadamard(8) >> quantize(int8, twos, token, absmax)  f64[2,3,8]
%3 = linear(%1, key.weight)                hadamard(8) >> quantize(int4, twos, channel, absmax) | input hadamard(8) >> quantize(int8, twos, token, absmax)  f64[2,3,8]
%4 = mul(%2, %3)                                                                                                                                            f64[2,3,8]
%5 = gelu(%4)                                                                                                                                               f64[2,3,8]
%6 = linear(%5, bare)                      hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%7 = linear(%6, bare)                      hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%8 = linear(%7, embed.weight)              hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,6]
return %8""",
    )


def test_project() -> None:
    gm = graph(Canonicalize(), Assign(SOME), Project())
    assert_expected_inline(
        listing(gm),
        """\
%tokens = input                                                                           i64[2,3]
%1 = project(embed.weight)          hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[6,8]
%2 = embedding(%tokens, %1, 0)                                                            f64[2,3,8]
%3 = project_rotated(%2)            hadamard(8) >> quantize(int8, twos, token, absmax)    f64[2,3,8]
%4 = project_rotated(query.weight)  hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[8,8]
%5 = linear(%3, %4, query.bias)                                                           f64[2,3,8]
%6 = project_rotated(key.weight)    hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[8,8]
%7 = linear(%3, %6)                                                                       f64[2,3,8]
%8 = mul(%5, %7)                                                                          f64[2,3,8]
%9 = gelu(%8)                                                                             f64[2,3,8]
%10 = project(bare)                 hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[8,8]
%11 = linear(%9, %10)                                                                     f64[2,3,8]
%12 = linear(%11, %10)                                                                    f64[2,3,8]
%13 = linear(%12, %1)                                                                     f64[2,3,6]
return %13""",
    )
    assert list(gm.state_dict()) == list(Tiny().state_dict())


def test_decode() -> None:
    gm = graph(Canonicalize())
    gm.requires_grad_(False)
    Pipeline((Assign(SOME), Decode()), given=frozenset({CANONICAL})).run(gm, probe=(TOKENS,))
    assert_expected_inline(
        listing(gm),
        """\
%tokens = input                                                                                                                                             i64[2,3]
%1 = embedding(%tokens, embed.weight, 0)   hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%2 = project(%1)                           hadamard(8) >> quantize(int8, twos, token, absmax)                                                               f64[2,3,8]
%3 = linear(%2, query.weight, query.bias)  hadamard(8) >> quantize(int4, twos, channel, absmax) | input hadamard(8) >> quantize(int8, twos, token, absmax)  f64[2,3,8]
%4 = linear(%2, key.weight)                hadamard(8) >> quantize(int4, twos, channel, absmax) | input hadamard(8) >> quantize(int8, twos, token, absmax)  f64[2,3,8]
%5 = mul(%3, %4)                                                                                                                                            f64[2,3,8]
%6 = gelu(%5)                                                                                                                                               f64[2,3,8]
%7 = linear(%6, bare)                      hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%8 = linear(%7, bare)                      hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,8]
%9 = linear(%8, embed.weight)              hadamard(8) >> quantize(int4, twos, channel, absmax)                                                             f64[2,3,6]
return %9""",
    )


def test_pack() -> None:
    gm = graph(Canonicalize(), Assign(SOME), Pack())
    assert_expected_inline(
        listing(gm),
        """\
%tokens = input                                                                                         i64[2,3]
%1 = packed_embedding(%tokens, embed.weight)      hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,8]
%2 = enter(%1)                                    hadamard(8) >> quantize(int8, twos, token, absmax)    f64[2,3,8]
%3 = packed_linear(%2, query.weight, query.bias)  hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,8]
%4 = packed_linear(%2, key.weight)                hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,8]
%5 = mul(%3, %4)                                                                                        f64[2,3,8]
%6 = gelu(%5)                                                                                           f64[2,3,8]
%7 = enter(%6)                                    hadamard(8)                                           f64[2,3,8]
%8 = packed_linear(%7, bare)                      hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,8]
%9 = enter(%8)                                    hadamard(8)                                           f64[2,3,8]
%10 = packed_linear(%9, bare)                     hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,8]
%11 = enter(%10)                                  hadamard(8)                                           f64[2,3,8]
%12 = packed_linear(%11, embed.weight)            hadamard(8) >> quantize(int4, twos, channel, absmax)  f64[2,3,6]
return %12""",
    )
    assert_expected_inline(
        "\n".join(gm.state_dict()),
        """\
embed.weight.carry
embed.weight.1.scale
query.bias
query.weight.carry
query.weight.1.scale
key.weight.carry
key.weight.1.scale
head.weight.carry
head.weight.1.scale
bare.carry
bare.1.scale""",
    )


def test_passes_are_idempotent_and_say_so() -> None:
    gm = graph(Canonicalize())
    assert not Canonicalize().rewrite(gm)
    assert Assign(SOME).rewrite(gm)
    assert not Assign(SOME).rewrite(gm)
    assert not Assign({}).rewrite(graph(Canonicalize(), Assign({})))
    assert not Project().rewrite(graph(Canonicalize(), Assign({})))
    assert not Pack().rewrite(graph(Canonicalize(), Assign({})))


def test_canonical_spelling_keeps_the_bits() -> None:
    torch.manual_seed(0)
    model = Tiny().double()
    part = part_of(model, fx.symbolic_trace(model).graph)
    Canonicalize().rewrite(part)
    part.recompile()
    assert torch.equal(part(TOKENS), model(TOKENS))


def broken(check: Callable[[fx.GraphModule], None], gm: fx.GraphModule) -> str:
    """The message with which a fact refuses a graph."""
    with pytest.raises(Broken) as error:
        check(gm)
    return str(error.value)


def test_canonical_bites() -> None:
    gm = graph(Canonicalize())
    CANONICAL.verify(gm)
    assert broken(CANONICAL.verify, graph()) == (
        "%embed (embed): this module is called whole, not as a function of its weight"
    )
    linear = next(site.node for site in sites(gm) if site.path == "query.weight")
    given = linear.args
    linear.args, linear.kwargs = given[:1], {"weight": given[1], "bias": given[2]}
    assert "the weight or the input is not a positional argument" in broken(CANONICAL.verify, gm)
    linear.args, linear.kwargs = given, {}
    CANONICAL.verify(gm)
    gm = graph(Canonicalize())
    (first, *_) = parameter_nodes(gm)
    with gm.graph.inserting_before(first):
        again = gm.graph.get_attr("head.weight")
    assert (
        broken(CANONICAL.verify, gm)
        == f"%{first.name} (embed.weight): this parameter is already read by %{again.name}"
    )


def test_assigned_bites() -> None:
    gm = graph(Canonicalize(), Assign(SOME))
    ASSIGNED.verify(gm)
    assert broken(ASSIGNED.verify, graph(Canonicalize())).endswith(
        "(embed.weight): this weight has no assignment"
    )
    weight = next(site.weight for site in sites(gm) if site.path == "bare")
    assign(weight, Assignment(Representation((Sparsify(sparsity_structure="2:3"),))))
    message = broken(ASSIGNED.verify, gm)
    assert message.startswith("%bare (bare): 2:3 sparsity does not divide the last dimension of 8")


def test_trainable_bites() -> None:
    TRAINABLE.verify(graph(Canonicalize(), Assign(SOME), Project()))
    message = broken(TRAINABLE.verify, graph(Canonicalize(), Assign(SOME)))
    assert message.endswith("(embed.weight): the latent weight is used unprojected by %embedding")

    gm = graph(Canonicalize(), Assign(SOME), Project())
    weight = next(node for node in parameter_nodes(gm) if node.target == "bare")
    (projected,) = weight.users
    gm.get_submodule(str(projected.target)).representation = OTHER
    assert "the latent weight is used unprojected" in broken(TRAINABLE.verify, gm)

    gm = graph(Canonicalize(), Assign(SOME), Project())
    query = next(node for node in gm.graph.nodes if node.target is F.linear)
    query.update_arg(0, query.args[0].args[0])
    assert "the input is not projected" in broken(TRAINABLE.verify, gm)

    gm = graph(Canonicalize(), Assign(SOME), Project())
    query = next(node for node in gm.graph.nodes if node.target is F.linear)
    gm.get_submodule(str(query.args[0].target)).keep_rotated = False
    assert "one of input and weight is rotated and the other is not" in broken(TRAINABLE.verify, gm)


def test_decoded_bites() -> None:
    assert broken(DECODED.verify, graph(Canonicalize(), Assign(SOME))).endswith(
        "this weight is still trained"
    )
    gm = graph(Canonicalize(), Assign(SOME))
    gm.requires_grad_(False)
    assert "the input is not projected" in broken(DECODED.verify, gm)


def test_packed_bites() -> None:
    PACKED.verify(graph(Canonicalize(), Assign(SOME), Pack()))
    message = broken(PACKED.verify, graph(Canonicalize(), Assign(SOME)))
    assert message.endswith("(embed.weight): this weight is still stored dense")


def test_listings_show_every_kind_of_argument() -> None:
    class Arguments(nn.Module):
        def forward(self, x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
            a = torch.cat([x, y["z"]], dim=1)
            return {
                "a": a[:, 1:].sum((0,)),
                "b": torch.zeros_like(a, dtype=torch.bfloat16, device=torch.device("cpu")),
            }

    assert_expected_inline(
        listing(fx.symbolic_trace(Arguments())),
        """\
%x = input
%y = input
%1 = getitem(%y, z)
%2 = cat([%x, %1], dim=1)
%3 = getitem(%2, (slice(None, None, None), slice(1, None, None)))
%4 = sum(%3, (0,))
%5 = zeros_like(%2, dtype=torch.bfloat16, device=cpu)
return {a: %4, b: %5}""",
    )


def test_containers_give_way_to_the_users_names() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model.add_module("rhoc", nn.Linear(8, 8))
    part = part_of(model, fx.symbolic_trace(model).graph)
    Pipeline((Canonicalize(), Assign({"0.weight": BOTH, "rhoc.weight": BOTH}), Project())).run(part)
    assert isinstance(part.rhoc, nn.Linear)
    assert isinstance(part.rhoc_, Container)
    assert {type(module) for module in part.rhoc_.children()} == {Projection}
