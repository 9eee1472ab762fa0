"""A Llama-style decoder sized by one dial, its width: RMSNorm, rotary positions, SwiGLU, untied embeddings.

Everything else follows from the width, so that models of different widths are points of one family and a
scaling sweep has one axis:

- heads are 32 wide where 32 divides the width and there are at least two of them, else 16 wide;
- layers are the width over 32, rounded half up, and at least 2;
- the hidden width of the MLP is 8/3 of the width, rounded up to a multiple of 32.

Shapes: B sequences in a batch, T tokens in a sequence, C width, H heads, D width of a head, V vocabulary.
Modules carry the names of Llama checkpoints (`q_proj`, `gate_proj`, `lm_head`, ...), so specs that target
those names apply here too. Nothing in `forward` depends on data or on B, so that `torch.fx.symbolic_trace`
and `torch.export` both capture it whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import RequestError
from .learned import learned_parameters

_INIT_GAIN = (
    0.5  # over sqrt(width): 0.02 at width 640, QuEST's setup (2502.05003), and in proportion at others
)
_EPS = 1e-5
_ROPE_BASE = 10000.0


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a decoder. `width` is `heads` times an even number; `context` is the longest sequence."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int = 256
    context: int = 128

    def __post_init__(self) -> None:
        smallest = min(self.width, self.layers, self.heads, self.hidden, self.vocabulary, self.context)
        if smallest < 1:
            raise RequestError(f"every size of a model must be at least 1: {self}", where="llama")
        if self.width % (2 * self.heads):
            raise RequestError(
                f"width {self.width} is not {self.heads} heads of an even number of features",
                where="llama",
                advice=f"choose a width that is a multiple of {2 * self.heads}",
            )

    @classmethod
    def of_width(cls, width: int, vocabulary: int = 256, context: int = 128) -> LlamaShape:
        """The member of the family with this width (a positive multiple of 16)."""
        if width < 16 or width % 16:
            below = max(width // 16 * 16, 16)
            raise RequestError(
                f"width {width} is not a positive multiple of 16",
                where="llama",
                advice=f"the nearest widths are {below} and {below + 16}",
            )
        head = 32 if width % 32 == 0 and width >= 64 else 16
        return cls(
            width=width,
            layers=max(2, (width + 16) // 32),
            heads=width // head,
            hidden=32 * -(-8 * width // (3 * 32)),
            vocabulary=vocabulary,
            context=context,
        )


@final
class Attention(nn.Module):
    """Causal self-attention with rotary positions: [B, T, C] to [B, T, C]."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)
        cosine, sine = rotary_tables(shape.context, shape.width // shape.heads)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Each position attends to itself and to earlier ones."""
        length = x.shape[1]
        cosine = torch.narrow(self.cosine, 0, 0, length)  # a slice would ask a traced length for its value
        sine = torch.narrow(self.sine, 0, 0, length)
        q = rotate(self._split(self.q_proj(x)), cosine, sine)
        k = rotate(self._split(self.k_proj(x)), cosine, sine)
        v = self._split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, H, T, D]."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


@final
class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), [B, T, C] to [B, T, C]."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Each position on its own."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


@final
class Block(nn.Module):
    """One decoder layer: attention and feed-forward, each normalised before and added after."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=_EPS)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=_EPS)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


@final
class Llama(nn.Module):
    """The decoder: int64 tokens [B, T] to float32 logits [B, T, V]. T may be anything up to the context."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.RMSNorm(shape.width, eps=_EPS)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=_INIT_GAIN / math.sqrt(shape.width))

    @property
    def example_inputs(self) -> tuple[Tensor]:
        """Tokens that the model can be run on: every token of the vocabulary in turn, `[2, 16]`."""
        vocabulary, _ = self.embed_tokens.weight.shape
        return (torch.arange(2 * 16).reshape(2, 16) % vocabulary,)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each position."""
        return self.lm_head(self.norm(self.layers(self.embed_tokens(tokens))))  # type: ignore[no-any-return]


def llama(width: int = 64, vocabulary: int = 256, context: int = 128) -> Llama:
    """The decoder of the family with this width, freshly initialised from torch's global generator.

    Raises RequestError when the width is not a positive multiple of 16.
    """
    return Llama(LlamaShape.of_width(width, vocabulary, context))


def rotary_tables(length: int, features: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [length, features] of RoPE (Su et al., arXiv 2104.09864, Eq. 15), base 10000.

    Feature j is paired with j + features/2, as Llama checkpoints have it. The sine of the first half is
    negative, which turns the rotation of a pair into one swap of the halves and two products.
    """
    frequencies = _ROPE_BASE ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((cosine, cosine), -1).float(), torch.cat((-sine, sine), -1).float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions applied to x [B, H, T, D] with the tables of `rotary_tables`."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((second, first), -1) * sine


def count_parameters(model: nn.Module, embedding: bool = False) -> int:
    """N, the number of parameters of a model, each shared one counted once; see `counted_parameters`."""
    return sum(parameter.numel() for parameter in counted_parameters(model, embedding))


def counted_parameters(model: nn.Module, embedding: bool = False) -> list[nn.Parameter]:
    """The parameters that N counts, each once.

    Parameters of `nn.Embedding` modules and of modules named `lm_head` are left out unless `embedding` is
    true, as scaling laws for language models count. Learned steps of grids are no parameters of the model.
    """
    left_out: set[int] = set()
    if not embedding:
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding) or name.rpartition(".")[2] == "lm_head":
                left_out.update(id(parameter) for parameter in module.parameters())
    left_out.update(id(parameter) for _, parameter in learned_parameters(model))
    return [parameter for parameter in model.parameters() if id(parameter) not in left_out]
