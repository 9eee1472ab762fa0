"""Every kind of module that owns a weight, each with what it must compute once its weights and inputs are
represented, written with plain torch functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .projected import a, normal, w, wk, wkt, wt

Of = Callable[[type[nn.Module]], Any]


@dataclass(frozen=True)
class Owner:
    """A module, made of classes that `of` may derive from; the arguments it is called with; what it must give,
    with the module's latent weights in `model`; the paths of the weights that are represented."""

    make: Callable[[Of], nn.Module]
    arguments: Callable[[], tuple[Any, ...]]
    expected: Callable[..., Any]
    weights: tuple[str, ...] = ("weight",)
    keywords: Callable[[], dict[str, Any]] = dict


def as_written(cls: type[nn.Module]) -> type[nn.Module]:
    return cls


def as_python(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward no graph is made of."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.forward(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"forward": forward})


def given(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (normal(*shape),)


def convolution(cls: Any, function: Any, size: int, **options: Any) -> Owner:
    """4 channels to 8 and kernels of 3."""

    def expected(m: Any, x: Tensor) -> Tensor:
        return function(a(x, 1), wk(m.weight), m.bias, m.stride, m.padding, m.dilation, m.groups)

    return Owner(lambda of: of(cls)(4, 8, 3, **options), given(2, 4, *([7] * size)), expected)


def transposed(cls: Any, function: Any, size: int, **options: Any) -> Owner:
    """4 channels to 8 and kernels of 3, in steps of 2."""

    def expected(m: Any, x: Tensor) -> Tensor:
        weight = wkt(m.weight, m.groups)
        return function(a(x, 1), weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)

    return Owner(lambda of: of(cls)(4, 8, 3, stride=2, **options), given(2, 4, *([5] * size)), expected)


def circular(m: Any, x: Tensor) -> Tensor:
    """What is padded are values of the input, so it makes no difference which comes first."""
    return F.conv2d(F.pad(a(x, 1), (1, 1, 1, 1), mode="circular"), wk(m.weight), m.bias)


TOKENS = torch.tensor([[0, 5, 2], [7, 2, 2]])


def bag(mode: str) -> Owner:
    def expected(m: Any, tokens: Tensor) -> Tensor:
        rows = w(m.weight)[tokens]
        return {"sum": rows.sum(1), "mean": rows.mean(1), "max": rows.amax(1)}[mode]

    return Owner(lambda of: of(nn.EmbeddingBag)(8, 16, mode=mode), lambda: (TOKENS,), expected)


def weighted_bags(m: Any, tokens: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    rows = w(m.weight)[tokens] * scale.unsqueeze(-1)
    return torch.stack([rows[:2].sum(0), rows[2:].sum(0)])


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, blocked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mixed values [batch, query, channel], and the weights averaged over heads; `blocked` broadcasts to
    [batch, heads, query, key]."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if blocked is not None:
        scores = scores.masked_fill(blocked, -torch.inf)
    weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights.mean(1)


def self_attention(m: Any, x: Tensor, blocked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of a module that takes the batch first."""
    q, k, v = F.linear(a(x), w(m.in_proj_weight), m.in_proj_bias).chunk(3, -1)
    mixed, weights = attention(q, k, v, m.num_heads, blocked)
    return F.linear(a(mixed), w(m.out_proj.weight), m.out_proj.bias), weights


def masked_attention(
    m: Any,
    x: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool,
    attn_mask: Tensor,
    key_padding_mask: Tensor,
) -> tuple[Tensor, None]:
    """Of a module that takes the sequence first."""
    blocked = attn_mask | key_padding_mask[:, None, None]
    return self_attention(m, x.transpose(0, 1), blocked)[0].transpose(0, 1), None


MASKS = {
    "need_weights": False,
    "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1),
    "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
}


def cross_attention(m: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    biases = m.in_proj_bias.chunk(3)
    weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    q, k, v = (F.linear(a(x), w(p), b) for x, p, b in zip((query, key, value), weights, biases, strict=True))
    mixed, scores = attention(q, k, v, m.num_heads, None)
    return F.linear(a(mixed), w(m.out_proj.weight), m.out_proj.bias), scores


class FusedQkv(nn.Module):
    """One linear for queries, keys and values, as GPT-2 and ViT have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def fused_qkv(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.linear(a(x), w(m.qkv.weight), m.qkv.bias).chunk(3, -1)
    return F.linear(a(attention(q, k, v, 2, None)[0]), w(m.out.weight), m.out.bias)


def recurrent(cls: Any, **options: Any) -> Owner:
    """Weights only: a recurrent layer runs as one kernel."""

    def expected(m: Any, x: Tensor) -> Any:
        values = {n: w(p) if n.startswith("weight_") else p for n, p in m.named_parameters()}
        return torch.func.functional_call(plain(m), values, (x,))

    def plain(m: Any) -> nn.Module:
        return cls(8, 12, **options).double()

    names = tuple(n for n, p in cls(8, 12, **options).named_parameters() if p.dim() == 2)
    return Owner(lambda of: of(cls)(8, 12, **options), given(3, 2, 8), expected, names)


def cell(cls: Any) -> Owner:
    owner = recurrent(cls)
    return Owner(owner.make, given(2, 8), owner.expected, owner.weights)


class Conv1D(nn.Module):
    """A linear layer with its weight the other way around, as GPT-2 in Hugging Face's transformers has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 4), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = x.size()[:-1] + (self.nf,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class LookedUpExperts(nn.Module):
    """Experts [expert, out, in] that are looked up one by one for the tokens that chose them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 12, 8) / 3)
        self.down = nn.Parameter(torch.randn(3, 8, 12) / 3)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in chosen.unique():
            rows = torch.where(chosen == expert)[0]
            hidden = F.relu(F.linear(x[rows], self.up[expert]))
            out.index_add_(0, rows, F.linear(hidden, self.down[expert]))
        return out


CHOSEN = torch.tensor([0, 2, 2, 0, 2, 0])


def looked_up(m: Any, x: Tensor, chosen: Tensor) -> Tensor:
    hidden = torch.einsum("ti,toi->to", a(x), w(m.up)[chosen]).relu()
    return torch.einsum("ti,toi->to", a(hidden), w(m.down)[chosen])


class BatchedExperts(nn.Module):
    """Experts [expert, in, out], all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 12) / 3)
        self.middle = nn.Parameter(torch.randn(3, 10, 12) / 3)
        self.down = nn.Parameter(torch.randn(3, 10, 8) / 3)
        self.bias = nn.Parameter(torch.randn(3, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.bmm(x, self.up).relu()
        h = torch.einsum("ebi,eoi->ebo", h, self.middle).relu()
        return torch.baddbmm(self.bias, h, self.down)


def batched(m: Any, x: Tensor) -> Tensor:
    h = (a(x) @ wt(m.up)).relu()
    h = (a(h) @ w(m.middle).mT).relu()
    return m.bias + a(h) @ wt(m.down)


class Products(nn.Module):
    """Parameters in every spelling of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(12, 8) / 3)
        self.second = nn.Parameter(torch.randn(12, 10) / 3)
        self.third = nn.Parameter(torch.randn(10, 8) / 3)
        self.fourth = nn.Parameter(torch.randn(2, 4, 6) / 3)
        self.fifth = nn.Parameter(torch.randn(12, 12) / 3)
        self.left = nn.Parameter(torch.randn(6, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(bias=None, input=x, weight=self.first).relu()
        h = torch.matmul(h, self.second).relu()
        h = (h @ self.third).relu()
        h = torch.einsum("bthd,hdo->btho", h.unflatten(-1, (2, 4)), self.fourth).flatten(2)
        return torch.matmul(self.left, h.matmul(self.fifth))


def products(m: Any, x: Tensor) -> Tensor:
    h = F.linear(a(x), w(m.first)).relu()
    h = (a(h) @ wt(m.second)).relu()
    h = (a(h) @ wt(m.third)).relu()
    heads = [a(part) @ wt(m.fourth)[i] for i, part in enumerate(h.chunk(2, -1))]
    h = a(torch.cat(heads, -1)) @ wt(m.fifth)
    return w(m.left) @ a(h, -2)


class Views(nn.Module):
    """Parameters that are looked at in another way on the way to their products."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(12, 8) / 3)
        self.indexed = nn.Parameter(torch.randn(2, 8, 12) / 3)
        self.squeezed = nn.Parameter(torch.randn(6, 8, 1) / 3)
        self.halves = nn.Parameter(torch.randn(12, 6) / 3)
        self.stacked = nn.Parameter(torch.randn(12, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = (x @ self.turned.T).relu()
        h = F.linear(h, self.indexed[0]) + h @ self.indexed[1].transpose(0, 1)
        h = F.linear(h.relu(), self.squeezed.squeeze(-1)).relu()
        first, second = self.halves.chunk(2)
        h = F.linear(h, first) * F.linear(h, second)
        return h @ self.stacked.view(2, 6, 10)[1]


def views(m: Any, x: Tensor) -> Tensor:
    h = F.linear(a(x), w(m.turned)).relu()
    h = F.linear(a(h), w(m.indexed).sum(0)).relu()
    h = F.linear(a(h), w(m.squeezed.flatten(1))).relu()
    first, second = w(m.halves).chunk(2)
    h = F.linear(a(h), first) * F.linear(a(h), second)
    return a(h) @ wt(m.stacked)[6:]


class Equations(nn.Module):
    """Einsums in every spelling: no result, ellipses, the weight first, a sum over another than the last."""

    def __init__(self) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.randn(8, 6) / 3)
        self.middle = nn.Parameter(torch.randn(5, 6, 4) / 3)
        self.first = nn.Parameter(torch.randn(7, 3) / 3)
        self.outer = nn.Parameter(torch.randn(2, 7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bti, iu", x, self.implicit).relu()
        h = torch.einsum("...j,ojk->...ok", h, self.middle).sum(-1).relu()
        h = torch.einsum("ot,btc->boc", self.first, h)
        return torch.einsum("bo,bt->bot", self.outer, h.sum(-1))


def equations(m: Any, x: Tensor) -> Tensor:
    h = (a(x) @ wt(m.implicit)).relu()
    weight = w(m.middle.transpose(1, 2)).sum(1)
    h = (a(h) @ weight.T).relu()
    h = w(m.first) @ a(h, -2)
    return m.outer.unsqueeze(-1) * h.sum(-1).unsqueeze(1)


class Times(nn.Module):
    """A matrix times a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight) + self.bias


class Twice(nn.Module):
    """A module that is used twice, and one of whose weights another module shares."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.head(self.hidden(F.gelu(self.hidden(h))))


def twice(m: Any, tokens: Tensor) -> Tensor:
    def hidden(x: Tensor) -> Tensor:
        return F.linear(a(x), w(m.hidden.weight), m.hidden.bias)

    table = w(m.embed.weight)
    return F.linear(a(hidden(F.gelu(hidden(table[tokens])))), table)


def linear(m: Any, x: Tensor) -> Tensor:
    """Of a weight that parametrizations compute, too."""
    return F.linear(a(x), w(m.weight), m.bias)


def conv(m: Any, x: Tensor) -> Tensor:
    return F.conv1d(a(x, 1), wk(m.weight), m.bias)


OWNERS: dict[str, Owner] = {
    "linear": Owner(lambda of: of(nn.Linear)(16, 24), given(2, 3, 16), linear),
    "linear_without_bias": Owner(lambda of: of(nn.Linear)(16, 24, bias=False), given(3, 16), linear),
    "bilinear": Owner(
        lambda of: of(nn.Bilinear)(6, 8, 5),
        lambda: (normal(3, 6), normal(3, 8)),
        lambda m, x, y: F.bilinear(x, a(y), w(m.weight), m.bias),
    ),
    "conv1d": convolution(nn.Conv1d, F.conv1d, 1),
    "conv1d_same": convolution(nn.Conv1d, F.conv1d, 1, padding="same", bias=False),
    "conv2d": convolution(nn.Conv2d, F.conv2d, 2, stride=2, padding=1),
    "conv3d": convolution(nn.Conv3d, F.conv3d, 3, padding=1),
    "conv2d_dilated": convolution(nn.Conv2d, F.conv2d, 2, dilation=2),
    "conv2d_grouped": convolution(nn.Conv2d, F.conv2d, 2, groups=2),
    "conv2d_depthwise": convolution(nn.Conv2d, F.conv2d, 2, groups=4),
    "conv2d_circular": Owner(
        lambda of: of(nn.Conv2d)(4, 8, 3, padding=1, padding_mode="circular"), given(2, 4, 6, 6), circular
    ),
    "conv_transpose1d": transposed(nn.ConvTranspose1d, F.conv_transpose1d, 1),
    "conv_transpose2d": transposed(nn.ConvTranspose2d, F.conv_transpose2d, 2, padding=1, output_padding=1),
    "conv_transpose3d": transposed(nn.ConvTranspose3d, F.conv_transpose3d, 3, bias=False),
    "conv_transpose2d_grouped": transposed(nn.ConvTranspose2d, F.conv_transpose2d, 2, groups=2, dilation=2),
    "embedding": Owner(
        lambda of: of(nn.Embedding)(8, 16, padding_idx=2),
        lambda: (TOKENS,),
        lambda m, t: F.embedding(t, w(m.weight), padding_idx=2),
    ),
    "embedding_bag_sum": bag("sum"),
    "embedding_bag_mean": bag("mean"),
    "embedding_bag_max": bag("max"),
    "embedding_bag_offsets": Owner(
        lambda of: of(nn.EmbeddingBag)(8, 16, mode="sum"),
        lambda: (torch.tensor([1, 4, 4, 7, 0]), torch.tensor([0, 2]), normal(5)),
        weighted_bags,
    ),
    "self_attention": Owner(
        lambda of: of(nn.MultiheadAttention)(16, 2, batch_first=True),
        lambda: (x := normal(2, 5, 16), x, x),
        lambda m, q, k, v: self_attention(m, q),
        ("in_proj_weight", "out_proj.weight"),
    ),
    "masked_attention": Owner(
        lambda of: of(nn.MultiheadAttention)(16, 2, bias=False),
        lambda: (x := normal(5, 2, 16), x, x),
        masked_attention,
        ("in_proj_weight", "out_proj.weight"),
        lambda: dict(MASKS),
    ),
    "cross_attention": Owner(
        lambda of: of(nn.MultiheadAttention)(16, 2, kdim=8, vdim=12, batch_first=True),
        lambda: (normal(2, 3, 16), normal(2, 5, 8), normal(2, 5, 12)),
        cross_attention,
        ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"),
    ),
    "fused_qkv": Owner(lambda of: of(FusedQkv)(), given(2, 5, 16), fused_qkv, ("qkv.weight", "out.weight")),
    "lstm": recurrent(nn.LSTM),
    "lstm_deep": recurrent(nn.LSTM, num_layers=2, bidirectional=True, proj_size=6),
    "gru": recurrent(nn.GRU, bidirectional=True, bias=False),
    "rnn": recurrent(nn.RNN, num_layers=2, nonlinearity="relu"),
    "lstm_cell": cell(nn.LSTMCell),
    "gru_cell": cell(nn.GRUCell),
    "rnn_cell": cell(nn.RNNCell),
    "hugging_face_conv1d": Owner(
        lambda of: of(Conv1D)(12, 16), given(2, 3, 16), lambda m, x: a(x) @ wt(m.weight) + m.bias
    ),
    "looked_up_experts": Owner(
        lambda of: of(LookedUpExperts)(), lambda: (normal(6, 8), CHOSEN), looked_up, ("up", "down")
    ),
    "batched_experts": Owner(
        lambda of: of(BatchedExperts)(), given(3, 4, 8), batched, ("up", "middle", "down")
    ),
    "products": Owner(
        lambda of: of(Products)(),
        given(2, 5, 8),
        products,
        ("first", "second", "third", "fourth", "fifth", "left"),
    ),
    "views": Owner(
        lambda of: of(Views)(), given(3, 8), views, ("turned", "indexed", "squeezed", "halves", "stacked")
    ),
    "equations": Owner(
        lambda of: of(Equations)(), given(2, 3, 8), equations, ("implicit", "middle", "first")
    ),
    "times": Owner(lambda of: of(Times)(), given(8), lambda m, x: w(m.matrix) @ a(x), ("matrix",)),
    "weight_norm": Owner(
        lambda of: parametrizations.weight_norm(of(nn.Linear)(16, 24)), given(3, 16), linear
    ),
    "spectral_norm": Owner(
        lambda of: parametrizations.spectral_norm(of(nn.Linear)(16, 24)), given(3, 16), linear
    ),
    "orthogonal": Owner(lambda of: parametrizations.orthogonal(of(nn.Linear)(16, 8)), given(3, 16), linear),
    "weight_norm_of_a_convolution": Owner(
        lambda of: parametrizations.weight_norm(of(nn.Conv1d)(4, 8, 3)), given(2, 4, 7), conv
    ),
    "scaled_subclass": Owner(
        lambda of: of(Scaled)(16, 24),
        given(3, 16),
        lambda m, x: 2 * F.linear(a(x), w(m.weight)) + m.bias,
    ),
    "twice": Owner(lambda of: of(Twice)(), lambda: (TOKENS,), twice, ("embed.weight", "hidden.weight")),
}
