"""Tiny models of many architectures that others wrote, with random weights from their configurations.

Everything is built from `transformers`' own classes by name, so that this file imports without the package.
A row gives the class of the model, and what its configuration says beside the sizes that its kind shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 128
LEFT_OUT = object()
"""In place of a value: leave it to the class."""
TEXT: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
MIXTURE = {"num_key_value_heads": 2, "moe_intermediate_size": 32}
VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BART: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5: dict[str, Any] = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SPEECH: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}

Inputs = Callable[[int, int], dict[str, Any]]
"""From a batch size and a length, the keyword arguments of a call, from the same random numbers every time."""


@dataclass(frozen=True)
class Case:
    """A model by name. `sizes` are the batch and length of the example and of a second call that differs.

    `optional` are keyword arguments of the example that a call may leave out.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((2, 12), (3, 9))
    optional: tuple[str, ...] = ()

    def example(self, other: bool = False) -> dict[str, Any]:
        """The keyword arguments of the example, or those of other sizes."""
        return self.inputs(*self.sizes[other])


@dataclass(frozen=True)
class Kind:
    """What the models of a kind share: the sizes in their configurations, and what they take."""

    options: dict[str, Any]
    inputs: Inputs
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((2, 12), (3, 9))
    optional: tuple[str, ...] = ()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Tokens other than the special ones, the same every time."""
    return torch.randint(5, TOKENS, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(batch: int, length: int) -> Tensor:
    """A mask in which the last row is two shorter."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -2:] = 0
    return mask


def text(batch: int, length: int) -> dict[str, Any]:
    """Tokens and the mask of a padded row."""
    return {"input_ids": tokens(batch, length), "attention_mask": padded(batch, length)}


def plain_text(batch: int, length: int) -> dict[str, Any]:
    """Tokens alone."""
    return {"input_ids": tokens(batch, length)}


def pairs(batch: int, length: int) -> dict[str, Any]:
    """Tokens of an encoder and, shorter, of a decoder."""
    return text(batch, length) | {"decoder_input_ids": tokens(batch, length - 3, seed=1)}


def pixels(batch: int, size: int) -> dict[str, Any]:
    """Images."""
    return {"pixel_values": noise(batch, 3, size, size)}


def captioned(batch: int, length: int) -> dict[str, Any]:
    """Texts and as many images."""
    return text(batch, length) | pixels(batch, 32)


def samples(batch: int, length: int) -> dict[str, Any]:
    """Sound."""
    return {"input_values": noise(batch, length)}


_FIXED = ((2, 32), (3, 32))
_ANY = ((2, 64), (3, 96))
_MASK = ("attention_mask",)
ENCODER = Kind(TEXT, text, optional=_MASK)
DECODER = Kind(TEXT | {"use_cache": False}, text, optional=_MASK)
SEQUENCES = Kind(BART | {"use_cache": False}, pairs, optional=_MASK)
RELATIVE = Kind(T5 | {"use_cache": False}, pairs, optional=_MASK)
PATCHES = Kind(VISION, pixels, _FIXED)
IMAGES = Kind({}, pixels, _ANY)
SOUND = Kind(SPEECH, samples, ((2, 800), (3, 1000)))
STATES = Kind(TEXT | {"use_cache": False}, plain_text)
BOTH = Kind({}, captioned)


@dataclass(frozen=True)
class Row:
    """A line of the list: the class in `transformers`, its family and kind, and what its configuration adds.

    Options whose value is None are left to the class; `takes` replaces the kind's inputs. With `scaled` its
    convolutions and norms are begun anew, so that something is left of an image behind the last one.
    """

    model: str
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    takes: Inputs | None = None
    scaled: bool = False

    def case(self, family: str) -> Case:
        """The case that the line stands for."""
        kind = self.kind
        name = self.name or _snake(self.model)
        inputs = self.takes or kind.inputs
        options = {k: v for k, v in (kind.options | self.options).items() if v is not LEFT_OUT}
        return Case(name, family, lambda: self._build(options), inputs, kind.sizes, kind.optional)

    def _build(self, options: dict[str, Any]) -> nn.Module:
        module = _from_config(self.model, options)
        for inner in module.modules() if self.scaled else ():
            if isinstance(inner, nn.Conv2d):
                nn.init.kaiming_normal_(inner.weight)
            elif isinstance(inner, nn.BatchNorm2d):
                nn.init.ones_(inner.weight)
        return module


def _from_config(model: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    built = getattr(transformers, model)
    config = built.config_class(**options)
    module: nn.Module = built(config)
    return module


_HEADS = (
    "ForMaskedLM",
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForImageClassification",
    "ForCTC",
    "Model",
)


def _snake(model: str) -> str:
    """BertForMaskedLM to bert."""
    stem = next((model.removesuffix(head) for head in _HEADS if model.endswith(head)), model)
    return stem.lower()
