"""Which tensors live in one basis, who reads and writes it, and what keeps it from being rotated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.passes.streams import Stream, streams
from rhoc.runtime.llama import llama

from .folding import graph_of, varied

TOKENS = torch.arange(12).reshape(2, 6)


def described(model: nn.Module, *inputs: Tensor) -> list[str]:
    return [str(stream) for stream in streams(graph_of(model, *inputs))]


def test_the_streams_of_a_decoder() -> None:
    model = llama(32)
    del model.layers[1]
    assert described(model, TOKENS) == [
        "32 features, embed_tokens.weight, layers.0.self_attn.o_proj.weight, layers.0.mlp.down_proj.weight -> "
        "layers.0.self_attn.q_proj.weight, layers.0.self_attn.k_proj.weight, layers.0.self_attn.v_proj.weight, "
        "layers.0.mlp.gate_proj.weight, layers.0.mlp.up_proj.weight, lm_head.weight",
        "16 features, layers.0.self_attn.q_proj.weight -> : chunk reads it",
        "16 features, layers.0.self_attn.k_proj.weight -> : chunk reads it",
        "16 features, layers.0.self_attn.v_proj.weight -> layers.0.self_attn.o_proj.weight",
        "96 features, layers.0.mlp.gate_proj.weight -> : silu reads it",
        "96 features, layers.0.mlp.up_proj.weight -> : mul reads it",
        "96 features,  -> layers.0.mlp.down_proj.weight: it comes from mul",
        "256 features, lm_head.weight -> : it is an output of the model",
    ]


def test_a_scale_that_was_not_folded_is_a_barrier() -> None:
    found = described(varied(llama(32)), TOKENS)
    assert found[0].startswith("32 features, embed_tokens.weight")
    assert found[0].endswith("layers.0.input_layernorm.weight scales it, which was not folded")


class Between(nn.Module):
    """Two linear layers with something between."""

    def __init__(self, what: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(width, 4)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.what(self.first(x)))


def middle(what: Callable[[Tensor], Tensor], width: int = 8) -> Stream:
    """The stream between the two layers, seen from the second."""
    found = streams(graph_of(Between(what, width), torch.randn(2, 3, 4)))
    return next(s for s in found if any(end.path == "second.weight" for end in s.readers))


def test_operations_that_commute_with_rotations() -> None:
    """The oracle is a rotation of the tensor itself, before and after."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    commuting: dict[str, Callable[[Tensor], Tensor]] = {
        "scaled by a number": lambda x: -x * 3 / 2,
        "scaled by vector": lambda x: x * x.new_tensor([[1.0], [2.0], [3.0]]),
        "moved": lambda x: x.transpose(0, 1).reshape(6, 8)[1:4].unsqueeze(0).expand(2, 3, 8),
        "joined": lambda x: torch.cat([x, x[:, :1]], 1),
        "added": lambda x: x + x.flip(1).roll(1, 0) if False else x + 2 * x,
        "averaged": lambda x: x.mean(1, keepdim=True) + x,
        "mixed over positions": lambda x: torch.softmax(x.new_ones(3, 3), -1) @ x,
        "picked": lambda x: x[:, torch.tensor([0, 2])],
        "cut across": lambda x: x.split(1, 1)[2],
        "rms norm": lambda x: F.rms_norm(x, (8,), None, 1e-6),
    }
    x = torch.randn(2, 3, 8)
    for name, what in commuting.items():
        stream = middle(what)
        assert (stream.barriers, stream.unit) == ((), 8), name
        assert [end.path for end in stream.writers] == ["first.weight"], name
        assert torch.allclose(what(x) @ rotation, what(x @ rotation), atol=1e-5), name


def test_operations_that_do_not() -> None:
    stopping: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "softmax": lambda x: x.softmax(-1),
        "add": lambda x: x + 1,
        "mul": lambda x: x * x,
        "cumsum": lambda x: x.cumsum(-1),
        "flip": lambda x: x.flip(-1),
        "transpose": lambda x: x.reshape(2, 3, 2, 4).transpose(2, 3).reshape(2, 3, 8),
        "cat": lambda x: torch.cat([x, x], -1)[..., 4:12],
        "linalg_vector_norm": lambda x: x / x.norm(dim=0),
    }
    for name, what in stopping.items():
        assert middle(what).barriers, name


def test_reshaping_keeps_the_blocks_that_divide_all_sizes() -> None:
    stream = middle(lambda x: x.reshape(2, 3, 2, 4).transpose(1, 2).reshape(2, 2, 12), 12)
    assert (stream.sizes, stream.unit, stream.barriers) == ((4, 8, 12), 4, ())


class Fused(nn.Module):
    """Attention whose query, key and value come from one weight, cut whole or head by head."""

    def __init__(self, by_head: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.by_head = by_head

    def forward(self, x: Tensor) -> Tensor:
        fused = self.qkv(x)
        if self.by_head:
            heads = fused.unflatten(-1, (2, 12)).transpose(1, 2)
            q, k, v = heads[..., :4], heads[..., 4:8], heads[..., 8:]
        else:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in fused.chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_the_rows_of_a_fused_projection() -> None:
    for by_head, rows in ((False, (16, 24, 24)), (True, (8, 12, 12))):
        found = streams(graph_of(Fused(by_head), torch.randn(2, 3, 8)))
        values = next(s for s in found if any(end.path == "out.weight" for end in s.readers))
        assert [(end.path, end.start, end.stop, end.period) for end in values.writers] == [
            ("qkv.weight", *rows)
        ]
        assert (values.unit, values.barriers) == (4, ())


class TwoBases(nn.Module):
    """One weight that reads two unrelated tensors, and one that is also added as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.first(x)) + self.both(self.second(x)).tanh()


def test_a_weight_in_two_bases_keeps_both() -> None:
    for stream in streams(graph_of(TwoBases(), torch.randn(2, 4))):
        if stream.readers and stream.writers:
            assert stream.barriers == ("both.weight lies in two bases",)


class Added(nn.Module):
    """Learned positions, added to what is looked up; a buffer in their place where `learned` is false."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 3)
        if learned:
            self.positions = nn.Parameter(torch.randn(1, 6, 8))
        else:
            self.register_buffer("positions", torch.randn(1, 6, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens) + self.positions)


def test_parameters_that_are_added_write_and_buffers_do_not() -> None:
    learned, fixed = (streams(graph_of(Added(each), TOKENS))[0] for each in (True, False))
    assert str(learned) == "8 features, embed.weight, positions -> head.weight"
    assert fixed.barriers == ("positions is no parameter",)
