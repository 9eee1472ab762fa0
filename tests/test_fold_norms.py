"""Scales of norms fold into the weights around them: values, keys, training, and what is not reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.passes.aten import Reads
from rhoc.passes.base import PipelineError
from rhoc.passes.fold_norms import FoldNorms
from rhoc.passes.listing import listing
from rhoc.passes.norms import Norm
from rhoc.passes.raise_norms import RaiseNorms
from rhoc.passes.reach import reaches
from rhoc.passes.sites import Site
from rhoc.runtime.folded import FrozenBatchNorm

from .folding import graph_of, kept, run, same, varied

FOLD = (RaiseNorms(), FoldNorms())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def lines(gm: fx.GraphModule, name: str = "FoldNorms") -> list[str]:
    return [str(reach) for reach in reaches(gm)[name]]


class WrittenOut(nn.Module):
    """An RMS norm as models spell it, before a linear layer."""

    def __init__(self, norm: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.norm = norm
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x, self.norm_weight))


def mean(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True) + 1e-6


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight first": lambda x, w: w * (x * torch.rsqrt(mean(x))),
    "weight last": lambda x, w: x * torch.rsqrt(mean(x)) * w,
    "one plus weight": lambda x, w: (x * torch.rsqrt(mean(x))) * (1.0 + w),
    "square root": lambda x, w: x / torch.sqrt(mean(x)) * w,
    "power": lambda x, w: x * mean(x).pow(-0.5) * w,
    "product": lambda x, w: torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * x * w,
    "torch": lambda x, w: F.rms_norm(x, (8,), w, 1e-6),
}
BEFORE = """\
%args_0 = input                                  f32[2,8]
%1 = pow.Tensor_Scalar(%args_0, 2)               f32[2,8]
%2 = mean.dim(%1, [-1], True)                    f32[2,1]
%3 = add.Tensor(%2, 1e-06)                       f32[2,1]
%4 = rsqrt.default(%3)                           f32[2,1]
%5 = mul.Tensor(%args_0, %4)                     f32[2,8]
%6 = mul.Tensor(norm_weight, %5)                 f32[2,8]
%7 = linear.default(%6, head.weight, head.bias)  f32[2,4]
return (%7,)"""
AFTER = """\
%args_0 = input                                          f32[2,8]
%1 = rms_norm.default(%args_0, [8], norm_weight, 1e-06)  f32[2,8]
%2 = linear.default(%1, head.weight, head.bias)          f32[2,4]
return (%2,)"""


def test_the_graph_before_and_after() -> None:
    gm = graph_of(WrittenOut(SPELLINGS["weight first"]), numbers(2, 8, dtype=torch.float32))
    assert listing(gm) == BEFORE
    RaiseNorms().rewrite(gm)
    assert listing(gm) == AFTER
    assert not RaiseNorms().rewrite(gm)


@DTYPES
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_raised_and_folded(spelling: str, dtype: torch.dtype) -> None:
    model = WrittenOut(SPELLINGS[spelling]).to(dtype)
    gm = kept(model, (numbers(2, 3, 8, dtype=dtype),), FOLD)
    assert sum(node.target is torch.ops.aten.rms_norm.default for node in gm.graph.nodes) == 1
    left = 0.0 if spelling == "one plus weight" else 1.0
    assert torch.equal(model.norm_weight, torch.full((8,), left, dtype=dtype))


def test_half_precision_norms_that_compute_in_single_are_raised() -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        wide = x.float()
        return w * (wide * torch.rsqrt(mean(wide))).to(x.dtype)

    gm = run(WrittenOut(norm).bfloat16(), (numbers(2, 8, dtype=torch.bfloat16),), FOLD)
    assert [str(node.target) for node in gm.graph.nodes if node.op == "call_function"] == [
        "aten.rms_norm.default",
        "aten.linear.default",
    ]


def test_a_norm_in_less_precision_keeps_its_casts_and_is_folded() -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        narrow = x.float()
        return w * (narrow * torch.rsqrt(mean(narrow))).to(x.dtype)

    model, x = WrittenOut(norm).double(), numbers(2, 8)
    before = model(x)
    gm = graph_of(model, x)
    assert [each.rewrite(gm) for each in FOLD] == [True, True]
    gm.recompile()
    assert model.norm_weight.eq(1).all()
    assert (model(x) - before).abs().max() < 1e-12  # the narrow part is not touched
    assert (gm(x)[0] - before).abs().max() < 1e-6
    assert torch.ops.aten.to.dtype in {node.target for node in gm.graph.nodes}


class Siblings(nn.Module):
    """One layer norm read by two linear layers, one of them through a view."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.first = nn.Linear(8, 4)
        self.second = nn.Linear(8, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.first(y) + self.second(y.reshape(-1, 8)).reshape(x.shape[0], -1, 4)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norms_with_their_bias(bias: bool, dtype: torch.dtype) -> None:
    model = varied(Siblings(bias)).to(dtype)
    scale, shift = model.norm.weight.detach().clone(), model.norm.bias.detach().clone()
    gm = kept(model, (numbers(2, 3, 8, dtype=dtype),), FOLD)
    assert model.norm.weight.eq(1).all()
    left = torch.zeros_like(shift) if bias else (shift.double() / scale.double()).to(dtype)
    assert torch.equal(model.norm.bias, left)
    assert lines(gm) == ["norm.weight: scales of 0.588 to 1.4 went into first.weight, second.weight"]


def test_training_goes_the_same_way_after_folding() -> None:
    """Gradients of the input are those of the model before."""
    x = numbers(2, 3, 8).requires_grad_()
    model = varied(Siblings(False)).double()
    before = torch.autograd.grad(model.train()(x).square().sum(), x)[0]
    kept(model, (x.detach(),), FOLD)
    after = torch.autograd.grad(model.train()(x).square().sum(), x)[0]
    assert same(before, after)


def test_a_scale_of_zero_where_the_bias_is_not() -> None:
    model = varied(Siblings(False)).double()
    with torch.no_grad():
        model.norm.weight[3] = 0
    gm = kept(model, (numbers(2, 3, 8),), FOLD)
    assert lines(gm) == [
        "norm.weight: not reached, some of its scales are zero where its bias is not, "
        "and a reader has no bias to take it"
    ]
    assert not model.norm.weight.eq(1).any()
    with torch.no_grad():
        model.norm.bias[3] = 0
    kept(model, (numbers(2, 3, 8),), FOLD)
    assert model.norm.weight.eq(1).all()


class Tied(nn.Module):
    """A norm before a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(tokens)))


class Read(nn.Module):
    """A norm whose result something else reads too."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 8)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head(y) + self.what(y)


def test_what_cannot_take_the_scale_is_named() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    gm = kept(varied(Tied()).double(), (tokens,), FOLD)
    assert lines(gm) == ["norm.weight: not reached, embed.weight is read elsewhere too, by embedding"]
    for what, why in ((torch.relu, "relu"), (lambda y: y * y, "mul"), (lambda y: y, "add")):
        gm = kept(varied(Read(what)).double(), (numbers(2, 8),), FOLD)
        assert lines(gm) == [f"norm.weight: not reached, {why} reads it"]


class Shared(nn.Module):
    """One norm before two layers, and one layer behind two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.RMSNorm(8), nn.RMSNorm(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(torch.tanh(self.first(self.norm(x)))))
        return y + self.second(self.other(x))


def test_shared_norms_fold_together_and_shared_readers_not_at_all() -> None:
    gm = kept(varied(Shared()).double(), (numbers(2, 8),), FOLD)
    why = "not reached, second.weight is read elsewhere too, by linear"
    assert lines(gm) == [f"norm.weight: {why}", f"other.weight: {why}"]
    model = Shared()
    model.other = model.norm
    gm = kept(varied(model).double(), (numbers(2, 8),), FOLD)
    assert [reach.reached for reach in reaches(gm)["FoldNorms"]] == [True]


@dataclass(frozen=True)
class ForgetsOne(FoldNorms):
    """Leaves one of the readers of a norm as it was."""

    def readers(self, gm: fx.GraphModule, group: tuple[Norm, ...], reads: Reads) -> list[Site] | str:
        found = super().readers(gm, group, reads)
        return found if isinstance(found, str) else found[:-1]


def test_a_wrong_grouping_is_caught_and_named() -> None:
    with pytest.raises(PipelineError, match="ForgetsOne declares keeps='values' but changed output 0"):
        run(varied(Siblings(True)), (numbers(2, 3, 8, dtype=torch.float32),), (RaiseNorms(), ForgetsOne()))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 7, 7)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "three dimensions": (lambda: nn.Conv3d(2, 6, 2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(5, 6), (3, 5)),
}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@DTYPES
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norms_go_into_the_layer_before(layer: str, affine: bool, dtype: torch.dtype) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    model = nn.Sequential(make(), NORMS[len(shape)](6, affine=affine), nn.ReLU())
    model = varied(model).to(dtype)
    x = numbers(*shape, dtype=dtype)
    dense, before = {k: v.clone() for k, v in model.state_dict().items()}, model.eval()(x)
    gm = kept(model, (x,), FOLD)
    assert [reach.reached for reach in reaches(gm)["FoldNorms"]] == [True]
    assert isinstance(model[1], FrozenBatchNorm)
    pre = model[0](x)  # what is left of the norm is a shift
    shift = (model[1](pre) - pre).transpose(0, 1).flatten(1)
    assert (shift - shift[:, :1]).abs().max() <= 1e3 * torch.finfo(dtype).eps * pre.abs().max()
    assert same(before, model.train()(x))  # frozen statistics
    model.load_state_dict(dense)
    assert same(before, model(x))  # a dense checkpoint means what it meant


class Normed(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(self.before(y)) + y.mean()


def test_batch_norms_that_stay_say_why() -> None:
    x = numbers(2, 3, 4, 4)
    gm = kept(varied(Normed(torch.relu)).double(), (x,), FOLD)
    assert lines(gm) == ["norm: not reached, its input comes through relu"]
    gm = kept(varied(Normed(lambda y: y)).double(), (x,), FOLD)
    assert lines(gm) == ["norm: not reached, the result of conv.weight is read elsewhere too"]
    hooked = varied(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).double()
    hooked[1].register_forward_hook(lambda *args: None)
    gm = kept(hooked, (x,), FOLD)
    assert lines(gm) == ["1: not reached, its module has hooks, which an exchange would lose"]
    gm = kept(
        varied(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).double(),
        (x,),
        (RaiseNorms(), FoldNorms(False)),
    )
    assert lines(gm) == []


def random_model(seed: int) -> nn.Module:
    """A chain of norms, linear layers and residual sums in an order drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList()
            for _ in range(5):
                norm = (nn.RMSNorm(8), nn.LayerNorm(8), nn.LayerNorm(8, bias=False))[draw(3)]
                heads = nn.ModuleList(nn.Linear(8, 8, bias=bool(draw(2))) for _ in range(1 + draw(2)))
                self.steps.append(nn.ModuleList([norm, heads]))
            self.kinds = [draw(4) for _ in range(5)]

        def forward(self, x: Tensor) -> Tensor:
            for kind, (norm, heads) in zip(self.kinds, self.steps, strict=True):
                y = norm(x)
                z = sum(head(y) for head in heads)
                x = (torch.tanh(z), x + z, y + z, z * 0.5)[kind]
            return x

    return varied(Random(), seed)


def test_random_graphs_keep_their_values() -> None:
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        gm = kept(random_model(seed).double(), (numbers(2, 3, 8),), FOLD)
        found += [reach.reached for reach in reaches(gm)["FoldNorms"]]
    assert 20 <= sum(found) < len(found)
