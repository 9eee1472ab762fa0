"""Entropy coding of what other stages store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..code import Code, FieldLayout
from ..entropy_coding import decode_field, encode_field, expected_bytes
from ..errors import RequestError
from ..gaussian import Source
from ..representation import Representation
from ..stage import Cell, Fields, HandsOn, Sized, Stage
from ..view import View
from .parts import nothing, nothing_sized

Coder = Literal["rans", "huffman"]

_SAMPLE = 1 << 16  # Gaussian numbers that say how long coded fields are expected to be
_SEED = 1952


@dataclass(frozen=True)
class Entropy(Stage):
    """Store the integers of other stages as coded bytes: frequent ones in few bits, rare ones in many.

    Shapes: any that `of` takes. Nothing is lost: the decoded tensor is that of `of`. Every integer field of
    `of` (codes, masks, positions) becomes a row of bytes under its own name, with its table of frequencies,
    or stays packed where coding it does not make it smaller; scales and other numbers stay as they are. How
    many bytes there are depends on the tensor; sizes that are told beforehand are those expected for Gaussian
    numbers.

    `of` is the chain of stages whose code is stored; scalar quantisation with a fine grid comes to 0.255 bits
    from Shannon's limit (Gish, Pierce 1968). `coder` is `rans`, within a percent of the entropy, or
    `huffman`, at least one bit per integer.
    """

    of: Representation
    coder: Coder = "rans"
    kind: Literal["entropy"] = "entropy"

    def __post_init__(self) -> None:
        if self.of.is_dense:
            raise ValueError("of must have at least one stage: dense numbers are not entropy-coded")
        if any(isinstance(stage, Entropy) for stage in self.of.stages):
            raise ValueError("of is entropy-coded already; leave one of the two out")

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def scale_free(self) -> bool:
        return self.of.scale_free

    @property
    def family(self) -> str:  # type: ignore[override]
        """The family of the stages inside, where they have one and the same."""
        families = {stage.family for stage in self.of.stages if stage.family}
        return families.pop() if len(families) == 1 else ""

    @property
    def unwrapped(self) -> tuple[Stage, ...]:
        return self.of.unwrapped

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        return replace(self, of=self.of.shared_over(tensors))

    @property
    def shared_fields(self) -> tuple[str, ...]:
        return self.of.shared_fields

    @property
    def shared_names(self) -> tuple[str, ...]:
        return self.of.shared_names

    @property
    def named(self) -> Stage:
        return replace(self, of=self.of.named)

    def check(self, shape: tuple[int, ...]) -> None:
        self.of.check(shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._encode(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        return (*self._encode(x, importance), None)

    def _encode(self, x: Tensor, importance: Tensor | None) -> tuple[Tensor, Fields]:
        if x.is_meta:
            described = self.layout(Sized(tuple(x.shape), x.dtype))[1]
            return nothing(x), {n: x.new_empty(s.shape, dtype=s.dtype) for n, s in described.items()}
        return nothing(x), self.coded(self.of.encode(x, importance))

    def coded(self, code: Code) -> Fields:
        """The fields that store a code of `of`."""
        named = code.named()
        layout = self.of.layout(code.shape, code.dtype)
        return named | {
            n: encode_field(named[n], f.bits, self.coder) for n, f in layout.items() if _is_coded(f)
        }

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        if carry.is_meta:
            return carry.new_empty(shape)
        named = {}
        for name, field in self.of.layout(shape, carry.dtype).items():
            stored = fields[name]
            coded = _is_coded(field)
            named[name] = decode_field(stored, field.shape, field.dtype, field.bits) if coded else stored
        return self.of.restore(self.of.code(named, shape, carry.dtype))

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        if any("orthogonal" in stage.tags for stage in self.of.stages):
            return self.of.restore(self.of.encode(x)), {}
        view = self.of.view(x)
        steps = {f"{i}.{name}": t for i, (_, kept) in enumerate(view.steps) for name, t in kept.items()}
        return view.projected, {**steps, _LIKE: nothing(x)}

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        described = {}
        for name, field in self.of.layout(x.shape, x.dtype).items():
            described[name] = Sized(field.shape, field.dtype, field.variable)
            if _is_coded(field):
                length = _expected_length(self, tuple(x.shape), x.dtype, name)
                described[name] = Sized((length,), torch.uint8, variable=True)
        return nothing_sized(x), described

    def kept(self, fields: Fields) -> Tensor | None:
        view = self._view(fields)
        return view.kept if view is not None else None

    def cell(self, fields: Fields) -> Cell | None:
        view = self._view(fields)
        return view.cell if view is not None else None

    def _view(self, fields: Fields) -> View | None:
        """The inner view from a projection's fields; None where a rotation inside mixes the numbers."""
        like = fields.get(_LIKE)
        if like is None:
            return None
        kept: list[Fields] = [{} for _ in self.of.stages]
        for name, tensor in fields.items():
            position, dot, inner = name.partition(".")
            if dot:
                kept[int(position)][inner] = tensor
        latent = like.new_empty(like.shape[1:])
        return View(latent, latent, tuple(zip(self.of.bound_stages, kept, strict=True)), rotated=False)

    def bound(self, source: Source) -> Entropy:
        """With the stages inside bound to what this stage is handed."""
        return replace(self, of=Representation(tuple(stage for stage, _, _ in self._walk(source))))

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """The error of the stages inside: coding adds none."""
        total, last = 0.0, source
        for _, following, error in self._walk(source):
            if following is None or error is None:
                return None
            total, last = total + error, following
        return last, total

    def _walk(self, source: Source | None) -> Iterator[tuple[Stage, Source | None, float | None]]:
        """Every stage inside, bound; what it hands on and the error it adds, None where that is not known."""
        for stage in self.of.stages:
            bound = stage.bound(source or Source())
            result = bound.gaussian(source) if source is not None else None
            source, error = result if result is not None else (None, None)
            yield bound, source, error


_LIKE = "like"  # among a projection's fields: no elements, the shape and dtype of the tensor


def _is_coded(field: FieldLayout) -> bool:
    """Whether a field has integers that are not coded yet."""
    return not field.variable and not field.dtype.is_floating_point and not field.dtype.is_complex


def _expected_length(stage: Entropy, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> int:
    """Bytes that a field of this name is expected to take in a tensor of this shape."""
    field = stage.of.layout(shape, dtype)[name]
    code = _sample(stage.of, _sample_shape(shape), dtype)
    return expected_bytes(code.named()[name], field.bits, stage.coder, prod(field.shape))


def _sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A smaller shape with the same last dimension, and the last but one where that fits."""
    sizes, room = list(shape), _SAMPLE
    for position in reversed(range(len(sizes) - 1)):
        room //= max(1, sizes[position + 1])
        sizes[position] = min(sizes[position], max(1, room))
    return tuple(sizes)


@lru_cache(maxsize=16)
def _sample(of: Representation, shape: tuple[int, ...], dtype: torch.dtype) -> Code:
    """The code of a seeded Gaussian tensor."""
    generator = torch.Generator().manual_seed(_SEED)
    x = torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    try:
        return of.encode(x)
    except RequestError:
        return of.encode(x, torch.ones((), dtype=torch.float32))  # stages that want importance: all alike
