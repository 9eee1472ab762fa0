"""Fused operations: what the rules make one, that not a bit changes, and that reasons are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

import rhoc
from rhoc.passes.assign import Assign
from rhoc.passes.assignment import Assignment
from rhoc.passes.base import PipelineError
from rhoc.passes.canonicalize import Canonicalize
from rhoc.passes.facts import CANONICAL, PACKED
from rhoc.passes.fuse import Fuse
from rhoc.passes.fuse_rule import FuseRule, Match
from rhoc.passes.fuse_rules import RULES, Activate, Gate, NormAndEnter
from rhoc.passes.listing import listing
from rhoc.passes.pack import Pack
from rhoc.passes.part import part_of
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.reach import reaches
from rhoc.runtime.fused import NormEnter, linear_activation
from rhoc.runtime.llama import Llama, LlamaShape
from rhoc.runtime.packed import packed_linear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify

pytestmark = pytest.mark.usefixtures("no_kernels")  # what fuses is asked of graphs, not of the machine

WEIGHT = Representation((Hadamard(8), Quantize(4, strategy="channel")))
INPUT = Representation((Hadamard(8), Quantize(8, strategy="token", dynamic=True)))
PLAIN = Representation((Quantize(4, strategy="channel"),))
SPARSE = Representation((Sparsify(sparsity_structure="2:4"),))
BOTH, ALONE = Assignment(WEIGHT, INPUT), Assignment(PLAIN)
SIZE = 8


def packed_graph(model: nn.Module, given: Assignment | Mapping[str, Assignment] = BOTH) -> fx.GraphModule:
    """The model's graph after `Pack`; one assignment is for every matrix."""
    if isinstance(given, Assignment):
        given = {name: given for name, parameter in model.named_parameters() if parameter.dim() == 2}
    part = part_of(model, fx.symbolic_trace(model).graph)
    Pipeline((Canonicalize(), Assign(given), Pack())).run(part)
    return part.eval()


def fuse(gm: fx.GraphModule, x: Tensor | None = None, rules: tuple[FuseRule, ...] = RULES) -> str:
    """Fuse with facts and promise checked; what was reached, a line for each weight."""
    each = Fuse(rules)
    Pipeline((each,), given=frozenset({PACKED, CANONICAL})).run(gm, probe=(numbers() if x is None else x,))
    return "\n".join(str(reach) for reach in reaches(gm)[each.name])


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (3, SIZE)), generator=generator, dtype=torch.float64).to(dtype)


class Block(nn.Module):
    """A norm before a gated unit, whose result is added and goes through a linear with bias and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.gate = nn.Linear(SIZE, 16, bias=False)
        self.up = nn.Linear(SIZE, 16)
        self.down = nn.Linear(16, SIZE)
        self.last = nn.Linear(SIZE, SIZE)
        self.act = nn.GELU(approximate="tanh")
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter, 1, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.act(self.last(x))


def test_golden() -> None:
    torch.manual_seed(0)
    gm = packed_graph(Block())
    assert_expected_inline(
        listing(gm),
        """\
%x = input
%1 = norm(%x)
%2 = enter(%1)                                    hadamard(8) >> quantize(int8, twos, token, absmax)
%3 = packed_linear(%2, gate.weight)               hadamard(8) >> quantize(int4, twos, channel, absmax)
%4 = silu(%3, inplace=False)
%5 = packed_linear(%2, up.weight, up.bias)        hadamard(8) >> quantize(int4, twos, channel, absmax)
%6 = mul(%4, %5)
%7 = enter(%6)                                    hadamard(8) >> quantize(int8, twos, token, absmax)
%8 = packed_linear(%7, down.weight, down.bias)    hadamard(8) >> quantize(int4, twos, channel, absmax)
%9 = add(%x, %8)
%10 = enter(%9)                                   hadamard(8) >> quantize(int8, twos, token, absmax)
%11 = packed_linear(%10, last.weight, last.bias)  hadamard(8) >> quantize(int4, twos, channel, absmax)
%12 = act(%11)
return %12""",
    )
    reached = fuse(gm)
    assert_expected_inline(
        listing(gm),
        """\
%x = input                                                                                                                           f32[3,8]
%1 = layer_norm_enter(%x, norm.weight, norm.bias)                              hadamard(8) >> quantize(int8, twos, token, absmax)    f32[3,8]
%2 = gated_linear(%1, gate.weight, up.weight, None, up.bias, activation=silu)  hadamard(8) >> quantize(int4, twos, channel, absmax)  f32[3,16]
%3 = enter(%2)                                                                 hadamard(8) >> quantize(int8, twos, token, absmax)    f32[3,16]
%4 = packed_linear(%3, down.weight, down.bias)                                 hadamard(8) >> quantize(int4, twos, channel, absmax)  f32[3,8]
%5 = add(%x, %4)                                                                                                                     f32[3,8]
%6 = enter(%5)                                                                 hadamard(8) >> quantize(int8, twos, token, absmax)    f32[3,8]
%7 = linear_activation(%6, last.weight, last.bias, activation=gelu_tanh)       hadamard(8) >> quantize(int4, twos, channel, absmax)  f32[3,8]
return %7""",
    )
    assert_expected_inline(
        reached,
        """\
gate.weight: its input is prepared together with norm; silu of it times the other, at once
up.weight: its input is prepared together with norm; silu of it times the other, at once
down.weight: not reached, its input comes from gated_linear, which is no norm; its result goes to add
last.weight: gelu_tanh together with the product; its input comes from add, which is no norm""",
    )


def llama_case() -> tuple[Llama, Tensor]:
    """One layer, with tokens."""
    torch.manual_seed(0)
    shape = LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=8, context=8)
    return Llama(shape), torch.arange(8).reshape(2, 4)


def test_golden_llama() -> None:
    model, _ = llama_case()
    compiled = rhoc.compile(model, "int4-a4")
    (step,) = compiled.shown("fuse")
    assert compiled.listing("fuse") == step.listing
    text = [line.partition("  ")[0] for line in step.listing.splitlines()]
    ours = [line for line in text if any(w in line for w in ("norm", "enter", "linear", "add"))]
    assert_expected_inline(
        "\n".join(ours),
        """\
%2 = rms_norm_enter(%1, layers.0.input_layernorm.weight)
%7 = packed_linear(%2, layers.0.self_attn.q_proj.weight)
%16 = add(%13, %15)
%17 = packed_linear(%2, layers.0.self_attn.k_proj.weight)
%26 = add(%23, %25)
%27 = packed_linear(%2, layers.0.self_attn.v_proj.weight)
%33 = enter(%32)
%34 = packed_linear(%33, layers.0.self_attn.o_proj.weight)
%35 = add(%1, %34)
%36 = rms_norm_enter(%35, layers.0.post_attention_layernorm.weight)
%37 = gated_linear(%36, layers.0.mlp.gate_proj.weight, layers.0.mlp.up_proj.weight, activation=silu)
%38 = enter(%37)
%39 = packed_linear(%38, layers.0.mlp.down_proj.weight)
%40 = add(%35, %39)
%41 = norm(%40)
%42 = linear(%41, lm_head.weight)""",
    )
    assert_expected_inline(
        "\n".join(str(reach) for reach in reaches(compiled.packed())["Fuse"]),
        """\
layers.0.self_attn.q_proj.weight: its input is prepared together with layers.0.input_layernorm; its result goes to unflatten
layers.0.self_attn.k_proj.weight: its input is prepared together with layers.0.input_layernorm; its result goes to unflatten
layers.0.self_attn.v_proj.weight: its input is prepared together with layers.0.input_layernorm; its result goes to unflatten
layers.0.self_attn.o_proj.weight: not reached, its input comes from flatten, which is no norm; its result goes to add
layers.0.mlp.gate_proj.weight: its input is prepared together with layers.0.post_attention_layernorm; silu of it times the other, at once
layers.0.mlp.up_proj.weight: its input is prepared together with layers.0.post_attention_layernorm; silu of it times the other, at once
layers.0.mlp.down_proj.weight: not reached, its input comes from gated_linear, which is no norm; its result goes to add""",
    )


def test_a_second_run_changes_nothing_and_says_the_same() -> None:
    gm = packed_graph(Block())
    first = fuse(gm)
    before = listing(gm)
    assert not Fuse().rewrite(gm)
    assert listing(gm) == before
    assert "\n".join(str(reach) for reach in reaches(gm)["Fuse"]) == first


# Random small graphs.

ACTIVATING: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": torch.relu,
    "relu_method": lambda t: t.relu(),
    "relu_in_place": lambda t: F.relu(t, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    "tanh": torch.tanh,
}
STEPS = (
    "rms",
    "layer",
    "bare",
    "function",
    "linear",
    "linear",
    "linear",
    "act",
    "gate",
    "add",
    "mul",
    "shape",
)


class Random(nn.Module):
    """A program on tensors `[..., 8]`: each step reads one or two of the results so far."""

    def __init__(self, steps: list[tuple[str, int, int, str]]) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleList()
        for kind, _, second, _ in steps:
            self.parts.append(self._part(kind, bias=second % 2 == 0))
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.2, 0.5)

    def _part(self, kind: str, bias: bool) -> nn.Module:
        if kind in ("linear", "act"):
            return nn.Linear(SIZE, SIZE, bias=bias)
        if kind == "gate":
            return nn.ModuleList([nn.Linear(SIZE, SIZE, bias=bias), nn.Linear(SIZE, SIZE, bias=not bias)])
        norms = {"rms": nn.RMSNorm(SIZE), "layer": nn.LayerNorm(SIZE), "function": nn.LayerNorm(SIZE)}
        return norms.get(kind, nn.RMSNorm(SIZE, elementwise_affine=False))

    def forward(self, x: Tensor) -> Tensor:
        results, unread = [x], {0}
        for (kind, first, second, name), part in zip(self.steps, self.parts, strict=True):
            a, b = (len(results) - 1 - back % len(results) for back in (first, second))
            unread -= {a, b} if kind in ("gate", "add", "mul") else {a}
            unread.add(len(results))
            results.append(self._step(kind, name, part, results[a], results[b]))
        return torch.cat([results[i] for i in sorted(unread)], -1)

    def _step(self, kind: str, name: str, part: Any, a: Tensor, b: Tensor) -> Tensor:
        if kind == "function":
            return F.layer_norm(a, (SIZE,), part.weight, bias=part.bias, eps=1e-3)
        if kind == "gate":
            return ACTIVATING[name](part[0](a)) * part[1](b)
        if kind == "act":
            return ACTIVATING[name](part(a))
        if kind in ("add", "mul"):
            return a + b if kind == "add" else a * b
        return a * a.shape[-1] if kind == "shape" else part(a)


BACK = st.sampled_from((0, 0, 0, 1, 2))
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(STEPS), BACK, BACK, st.sampled_from(list(ACTIVATING))),
    min_size=2,
    max_size=10,
)
GIVEN = (BOTH, ALONE, Assignment(WEIGHT), Assignment(SPARSE, SPARSE, output=SPARSE), Assignment())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    PROGRAMS,
    st.lists(st.sampled_from(GIVEN), min_size=3, max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_not_a_bit_changes(
    steps: list[tuple[str, int, int, str]], given: list[Assignment], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Random(steps).to(dtype)
    matrices = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    gm = packed_graph(model, {name: given[int(name.split(".")[1]) % 3] for name in matrices})
    plain = copy.deepcopy(gm)
    x = numbers(2, 3, SIZE, dtype=dtype)
    reached = fuse(gm, x)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [each(leaf) for each, leaf in zip((plain, gm), inputs, strict=True)]
    assert torch.equal(*outputs)
    if (
        outputs[0].requires_grad and "projected once" not in reached
    ):  # zeros let no gradient pass, once or twice
        gradients = [torch.autograd.grad(o.sum(), i)[0] for o, i in zip(outputs, inputs, strict=True)]
        assert torch.equal(*gradients)
    assert list(gm.state_dict()) == list(plain.state_dict())
    linears = [n for n in plain.graph.nodes if n.target is packed_linear]
    assert len(reaches(gm)["Fuse"]) == len(linears)


# Rules that are wrong.


@dataclass(frozen=True)
class WrongActivation(Activate):
    """Every activation is a ReLU."""

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        fused = super().apply(gm, match)
        fused.kwargs = {"activation": "relu"}
        return fused


@dataclass(frozen=True)
class WrongGate(Gate):
    """The two weights are exchanged."""

    def apply(self, gm: fx.GraphModule, match: Match) -> fx.Node:
        fused = super().apply(gm, match)
        fused.args = (fused.args[0], *fused.args[1:3][::-1], *fused.args[3:])
        return fused


@dataclass(frozen=True)
class WrongNorm(NormAndEnter):
    """Who else reads the norm is not asked."""

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Match | str | None:
        found = super().match(gm, node)
        return Match((node.args[0], node), "") if isinstance(found, str) else found  # type: ignore[arg-type]


class NormTwice(nn.Module):
    """What a norm gives is added besides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return F.silu(self.linear(h)) + h


@pytest.mark.parametrize(
    ("rule", "model"), [(WrongActivation(), NormTwice), (WrongGate(), Block), (WrongNorm(), NormTwice)]
)
def test_a_wrong_rule_is_caught_and_named(rule: FuseRule, model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    gm = packed_graph(model())
    with pytest.raises(
        PipelineError, match=rf"Fuse\({rule.name}\) declares keeps='bits' but changed output 0"
    ):
        fuse(gm, rules=(rule,))


# Why not.


class Wide(nn.Module):
    """Two matrices and what a case needs."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.norm, self.act = nn.RMSNorm(SIZE), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


REASONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "norm read by others": (
        lambda m, x: m.a(h := m.norm(x)) + h,
        "a.weight: not reached, norm is read by add too; its result goes to add",
    ),
    "norm called twice": (
        lambda m, x: m.a(m.norm(m.norm(x))),
        "a.weight: not reached, norm is called 2 times; its result goes to output",
    ),
    "no norm": (
        lambda m, x: m.a(x.abs()).exp(),
        "a.weight: not reached, its input comes from abs, which is no norm; its result goes to exp",
    ),
    "shape computed": (
        lambda m, x: m.a(F.layer_norm(x, x.shape[-1:])),
        "a.weight: not reached, the shape or eps of layer_norm is computed; its result goes to output",
    ),
    "read twice": (
        lambda m, x: (h := m.a(x)) * F.silu(h),
        "a.weight: not reached, its input comes from x, which is no norm; its result is read in several places",
    ),
    "squared": (
        lambda m, x: (h := m.a(x)) * h,
        "a.weight: not reached, its input comes from x, which is no norm; its result goes to mul",
    ),
    "activation squared": (
        lambda m, x: (h := F.silu(m.a(x))) * h,
        "a.weight: silu together with the product; its input comes from x, which is no norm",
    ),
    "activation called twice": (
        lambda m, x: m.act(m.act(m.a(x))),
        "a.weight: not reached, its input comes from x, which is no norm; act is called 2 times",
    ),
    "another input": (
        lambda m, x: F.silu(m.a(x)) * m.b(x + 1),
        "a.weight: its input comes from x, which is no norm; mul is not with a packed linear of the same input; "
        "silu together with the product",
    ),
    "written between": (
        lambda m, x: F.silu(m.a(y := x * 2)) * (y.add_(1), m.b(y))[1],
        "a.weight: silu together with the product; add_ is computed between it and b.weight; "
        "its input comes from mul, which is no norm",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str) -> None:
    run, reason = REASONS[name]
    said = fuse(packed_graph(Wide(run))).splitlines()[0]
    assert sorted(said.removeprefix("a.weight: ").split("; ")) == sorted(
        reason.removeprefix("a.weight: ").split("; ")
    )


def test_a_gate_of_weights_stored_otherwise_keeps_its_activation() -> None:
    model = Wide(lambda m, x: F.silu(m.a(x)) * m.b(x))
    same = Assignment(Representation((Hadamard(8), Quantize(3, strategy="channel"))), INPUT)
    gm = packed_graph(model, {"a.weight": BOTH, "b.weight": same})
    reached = fuse(gm)
    assert "silu together with the product" in reached
    assert "b.weight is stored otherwise" in reached
    assert any(node.target is linear_activation for node in gm.graph.nodes)


def test_modules_with_hooks_stay() -> None:
    model = Wide(lambda m, x: m.act(m.a(m.norm(x))))
    gm = packed_graph(model)
    calls: list[str] = []
    model.norm.register_forward_hook(lambda *args: calls.append("norm"))
    model.act.register_forward_pre_hook(lambda *args: calls.append("act"))
    assert fuse(gm) == "a.weight: not reached, norm has hooks; act has hooks"
    calls.clear()
    gm(numbers())
    assert calls == ["norm", "act"]


def test_norms_that_share_a_parameter_read_it_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.RMSNorm(SIZE), nn.RMSNorm(SIZE)
            self.second.weight = self.first.weight
            self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.second(self.a(self.first(x))))

    gm = packed_graph(Shared())
    fuse(gm)
    assert sum(node.target == "first.weight" for node in gm.graph.nodes) == 1
    assert sum(isinstance(module, NormEnter) for module in gm.modules()) == 2


def between(representation: Representation) -> fx.GraphModule:
    """Two linears; what the first gives and what the second takes are in one representation."""
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE))
    first, second = Assignment(PLAIN, output=representation), Assignment(PLAIN, representation)
    return packed_graph(model, {"0.weight": first, "1.weight": second})


def test_what_is_projected_already_is_projected_once() -> None:
    gm = between(SPARSE)
    assert "enter" in listing(gm)
    assert "1.weight: projected once instead of twice" in fuse(gm)
    assert "enter" not in listing(gm)
    gm = between(Representation((Quantize(8, strategy="token", dynamic=True),)))
    assert "quantize(int8, twos, token, absmax) twice is not known to be" in fuse(gm)
    assert "enter" in listing(gm)
