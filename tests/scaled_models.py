"""Small models with channels that can be scaled, and what the groups of each are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.compiler.example import Example
from rhoc.compiler.whole import whole_graph
from rhoc.passes.assignment import Assignment, assign
from rhoc.passes.sites import sites
from rhoc.runtime.llama import llama
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

INT4 = Representation((Quantize(4, strategy="channel"),))
ROUGH = Assignment(INT4, Representation((Quantize(4),)))


def graph_of(model: nn.Module, *inputs: Tensor, assignment: Assignment | None = ROUGH) -> fx.GraphModule:
    """The whole model, all of its weights with one assignment."""
    gm = whole_graph(model, Example(inputs))
    assert isinstance(gm, fx.GraphModule), gm
    for site in sites(gm):
        if assignment is not None:
            assign(site.weight, assignment)
    return gm


class Grouped(nn.Module):
    """Attention with two value heads for four query heads, from one fused projection, by sdpa or written out."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.written_out = written_out
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 8 + 4 + 4)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).split((8, 4, 4), -1)
        q = q.view(b, t, 4, 2).transpose(1, 2)
        k, v = (
            y.view(b, t, 2, 2).transpose(1, 2)[:, :, None].expand(b, 2, 2, t, 2).reshape(b, 4, t, 2)
            for y in (k, v)
        )
        if self.written_out:
            y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, 8))


class Gemma(nn.Module):
    """An RMS norm that is written out, with 1 + weight, in front of two products `x @ W`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8) / 4)
        self.gate = nn.Parameter(torch.randn(8, 12) / 3)
        self.up = nn.Parameter(torch.randn(8, 12) / 3)
        self.bias = nn.Parameter(torch.randn(12))
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)
        flat = x.view(-1, 8)
        y = F.silu(flat @ self.gate) * torch.addmm(self.bias, flat, self.up)
        return self.down(y)


class Skip(nn.Module):
    """Two tensors joined in front of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.cat((self.left(x).relu(), F.silu(self.right(x))), -1))


class Experts(nn.Module):
    """Three-dimensional weights: two experts on their own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.up = nn.Parameter(torch.randn(2, 8, 12) / 3)
        self.down = nn.Parameter(torch.randn(2, 6, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).expand(2, *x.shape).reshape(2, -1, 8)
        gate, up = torch.bmm(y, self.up).chunk(2, -1)
        return torch.bmm(F.gelu(gate) * up, self.down)


def convolutions() -> nn.Module:
    """Grouped, transposed and depthwise, batch norm, pooling, and a linear over flattened positions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2, padding=1),
        nn.LeakyReLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2, bias=False),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, 6),
        nn.GroupNorm(2, 6),
        nn.Linear(6, 5),
    )


def sequence() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def image() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def words() -> Tensor:
    return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    expected: tuple[str, ...]


NO = "not reached, "
LAYER = (
    "{0}.input_layernorm.weight -> {0}.self_attn.q_proj.weight, {0}.self_attn.k_proj.weight, "
    "{0}.self_attn.v_proj.weight (16 of 16)",
    "{0}.self_attn.v_proj.weight -> {0}.self_attn.o_proj.weight (16 of 16)",
    "{0}.post_attention_layernorm.weight -> {0}.mlp.gate_proj.weight, {0}.mlp.up_proj.weight (16 of 16)",
    "{0}.mlp.up_proj.weight -> {0}.mlp.down_proj.weight (64 of 64)",
)
LLAMA = (
    *(line.format(f"layers.{i}") for i in range(2) for line in LAYER),
    "norm.weight -> lm_head.weight (16 of 16)",
    f"embed_tokens.weight: {NO}embedding looks its weight up and has no input channels",
)
CASES = {
    "llama": Case(lambda: llama(16, vocabulary=32, context=16), words, LLAMA),
    "grouped queries": Case(
        lambda: Grouped(False),
        sequence,
        ("norm.weight -> qkv.weight (8 of 8)", "qkv.weight -> out.weight (4 of 16)"),
    ),
    "written out attention": Case(
        lambda: Grouped(True),
        sequence,
        ("norm.weight -> qkv.weight (8 of 8)", "qkv.weight -> out.weight (4 of 16)"),
    ),
    "gemma": Case(Gemma, sequence, ("weight -> gate, up (8 of 8)", "up -> down.weight (12 of 12)")),
    "skip": Case(
        Skip,
        sequence,
        (
            "left.weight -> both.weight (4 of 4)",
            f"left.weight: {NO}its input is an input of the model",
            f"right.weight: {NO}its input is an input of the model",
        ),
    ),
    "experts": Case(Experts, sequence, ("norm.weight -> up (8 of 8)", "up -> down (12 of 24)")),
    "convolutions": Case(
        convolutions,
        image,
        (
            "1.weight -> 3.weight (8 of 8)",
            "3.weight -> 6.weight (12 of 12)",
            "6.weight -> 8.weight (8 of 8)",
            "8.weight -> 12.weight (8 of 8)",
            "13.weight -> 14.weight (6 of 6)",
            f"0.weight: {NO}its input is an input of the model",
        ),
    ),
}
"""By name: what the groups are."""


def model_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A model with norms and statistics that are not all ones, and its input."""
    torch.manual_seed(0)
    model, x = CASES[name].make().to(dtype).eval(), CASES[name].input()
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "norm" in path or tensor.dim() == 1:
            with torch.no_grad():
                tensor.copy_(torch.rand_like(tensor) + 0.5) if tensor.is_floating_point() else None
    return model, x.to(dtype) if x.is_floating_point() else x


def same(a: Tensor, b: Tensor) -> None:
    """Equal within a thousand roundings of the largest value."""
    tolerance = 1e3 * torch.finfo(a.dtype).eps * float(a.abs().max())
    assert float((a - b).abs().max()) <= tolerance
