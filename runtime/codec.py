"""A codec: the tables that an activation is encoded with, and how often their vectors are chosen.

It is what a trained bottleneck leaves behind. `compress` gives the bytes that a model's activation becomes,
`Codec.decompress` the activation of bytes; both run with this folder alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .coded_bytes import decode_codes, encode_codes, entropy, frequencies_of, ideal_bits, symbols_of
from .errors import RequestError
from .representation import Representation
from .vector_levels import Levels, levels_of

_NAMES = "codec.tables", "codec.frequencies"


@dataclass(frozen=True, eq=False)
class Codec:
    """The codebooks of a representation with their numbers.

    `path` is that of the weight whose outputs are encoded. `tables` are as they are stored, one for each
    term `[num_codebooks, 2^nbits, size]`. `frequencies` are those of rANS, int16, one for each term
    `[num_codebooks, symbols]`; of a code of more than 8 bits those of its low byte and then of the rest.
    `levels` is how the codebooks work together.
    """

    path: str
    representation: Representation
    tables: tuple[Tensor, ...]
    frequencies: tuple[Tensor, ...]
    levels: Levels = field(init=False, repr=False)
    _moved: dict[torch.device, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", levels_of(self.representation))

    @classmethod
    def of(
        cls, path: str, representation: Representation, tables: Sequence[Tensor], usage: Sequence[Tensor]
    ) -> Codec:
        """From trained tables, and the share of every vector among those chosen `[num_codebooks, 2^nbits]`.

        Raises RequestError when a number is not finite as it is stored.
        """
        levels = levels_of(representation)
        dtypes = [getattr(torch, stage.codebook_dtype) for stage in levels.stages]
        stored = tuple(t.detach().to(d).contiguous() for t, d in zip(tables, dtypes, strict=True))
        if not all(bool(torch.isfinite(table).all()) for table in stored):
            raise RequestError(
                "a trained table is NaN or infinite as it is stored, and nothing decodes with it",
                where=path,
                advice="train with a lower learning rate, or choose codebook_dtype: bfloat16",
            )
        shares = zip(levels.stages, usage, strict=True)
        return cls(
            path, representation, stored, tuple(frequencies_of(u, s.nbits_per_codebook) for s, u in shares)
        )

    @classmethod
    def from_named(cls, path: str, representation: Representation, tensors: Mapping[str, Tensor]) -> Codec:
        """From what `named` gave. Raises RequestError where something is missing or of another shape."""
        levels = levels_of(representation)
        found: list[list[Tensor]] = [[], []]
        for position, stage in enumerate(levels.stages):
            books, vectors, size = stage.books_shape
            symbols = symbols_of(stage.nbits_per_codebook)
            for kept, name, shape in zip(
                found, _NAMES, ((books, vectors, size), (books, symbols)), strict=True
            ):
                tensor = tensors.get(f"{path}.{name}.{position}")
                if tensor is None or tuple(tensor.shape) != shape:
                    raise RequestError(
                        f"{path}.{name}.{position} is missing or of the wrong shape",
                        advice="save the model again",
                    )
                kept.append(tensor)
        return cls(path, representation, tuple(found[0]), tuple(found[1]))

    def named(self, path: str) -> dict[str, Tensor]:
        """What is stored, by name in a file of tensors."""
        pairs = zip(_NAMES, (self.tables, self.frequencies), strict=True)
        return {f"{path}.{name}.{i}": tensor for name, each in pairs for i, tensor in enumerate(each)}

    @cached_property
    def identity(self) -> int:
        """32 bits that are the same for the same tables and frequencies: bytes are of one codec only."""
        parts = [
            t.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            for t in (*self.tables, *self.frequencies)
        ]
        return zlib.crc32(b"".join([str(self.representation).encode(), *parts]))

    @property
    def nbytes(self) -> int:
        """Stored bytes: tables and frequencies."""
        return sum(tensor.nbytes for tensor in (*self.tables, *self.frequencies))

    @property
    def bits(self) -> int:
        """Nominal bits of a vector's codes."""
        return self.levels.bits

    @property
    def coded_bits(self) -> float:
        """Bits of a vector's codes once coded, if they come as often as in training."""
        return sum(
            entropy(own, bits) for own, bits in zip(self._of_codes, self.levels.alphabets, strict=True)
        )

    @property
    def _of_codes(self) -> list[np.ndarray[Any, np.dtype[np.uint32]]]:
        """The frequencies of each code of a vector."""
        return [row.cpu().numpy().astype(np.uint32) for each in self.frequencies for row in each]

    def encode(self, x: Tensor, dimension: int = -1) -> Tensor:
        """The codes of an activation, int64: a multiple of `size` numbers along `dimension`, counted from the
        end, become codes along the last one. Raises RequestError for another number of them."""
        moved = x.movedim(dimension, -1)
        self.levels.check(moved.shape[-1])
        return self.levels.encode(moved, self._on(x.device))

    def decode(self, codes: Tensor, dimension: int = -1) -> Tensor:
        """The activation that codes stand for, in float32."""
        return self.levels.decode(codes, self._on(codes.device)).movedim(-1, dimension)

    def project(self, x: Tensor, dimension: int = -1) -> Tensor:
        """What the activation is on the other side: `decode(encode(x))`, in the dtype of `x`."""
        dimension = max(dimension, -x.dim())
        codes = self.encode(x, dimension)
        watching = None if torch.compiler.is_compiling() else _WATCHING.get()
        if watching is not None:
            watching.append((self, codes, dimension))
        found = self.decode(codes, dimension)
        return (x + (found - x).detach() if x.requires_grad else found).to(x.dtype)

    def to_bytes(self, codes: Tensor, dimension: int = -1) -> bytes:
        """Codes, entropy-coded by the stored frequencies, with a header that has their shape."""
        widths = self.levels.alphabets
        return encode_codes(codes, widths, self._of_codes, self.identity, dimension)

    def from_bytes(self, data: bytes) -> tuple[Tensor, int]:
        """The codes, and the dimension. Raises RequestError for bytes of another codec, WorkError for damaged
        ones."""
        return decode_codes(data, self.levels.alphabets, self._of_codes, self.identity)

    def compress(self, x: Tensor, dimension: int = -1) -> bytes:
        """An activation as bytes."""
        return self.to_bytes(self.encode(x, dimension), dimension)

    def decompress(self, data: bytes) -> Tensor:
        """The activation of bytes, in float32. Raises as `from_bytes`."""
        codes, dimension = self.from_bytes(data)
        return self.decode(codes, dimension)

    def expected_bytes(self, codes: Tensor) -> float:
        """What the ideal coder would make of codes by the stored frequencies, without a header."""
        return ideal_bits(codes, self.levels.alphabets, self._of_codes) / 8

    def _on(self, device: torch.device) -> list[Tensor]:
        if device not in self._moved:
            self._moved[device] = [table.to(device).float() for table in self.tables]
        return self._moved[device]

    def __str__(self) -> str:
        bits = f"{self.bits} bits a vector, {self.coded_bits:.2f} coded"
        return f"{self.representation}, {bits}, {self.nbytes} bytes"


class ProjectCodec(nn.Module):
    """`Codec.project` as a module without state, so that a graph can call it and print its name."""

    def __init__(self, codec: Codec, dimension: int) -> None:
        super().__init__()
        self.codec, self.dimension = codec, dimension

    @property
    def key(self) -> Hashable:
        """What it does: modules with equal keys do the same."""
        return self.codec, self.dimension

    def forward(self, x: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype."""
        return self.codec.project(x, self.dimension)

    def extra_repr(self) -> str:
        return str(self.codec)


_Seen = list[tuple[Codec, Tensor, int]]
_WATCHING: ContextVar[_Seen | None] = ContextVar("codes", default=None)


@contextmanager
def _watched() -> Iterator[_Seen]:
    """What codecs encode inside: themselves, codes and dimension, in order."""
    seen: _Seen = []
    token = _WATCHING.set(seen)
    try:
        yield seen
    finally:
        _WATCHING.reset(token)


def codecs(model: nn.Module) -> dict[str, Codec]:
    """The codecs of a packed model, by the path of the weight whose outputs each encodes."""
    found: dict[str, Codec] = {}
    for module in model.modules():
        codec = module.codec if isinstance(module, ProjectCodec) else getattr(_slots(module), "codec", None)
        if codec is not None:
            found[codec.path] = codec
    return found


def _slots(module: nn.Module) -> object:
    return vars(module).get("slots")  # of a packed weight


def compress(model: nn.Module, *args: Any, **kwargs: Any) -> bytes:
    """What the one codec of a packed model makes of an input of the model, as bytes.

    `Codec.decompress` gives back the activation, for the layers that follow. Raises RequestError when not
    exactly one codec encodes something.
    """
    with torch.no_grad(), _watched() as seen:
        model(*args, **kwargs)
    if len(seen) != 1:
        raise RequestError(
            f"{len(seen)} activations were encoded, and bytes are of one",
            where="compress",
            advice="take the codecs of rhoc.runtime.codec.codecs one by one"
            if seen
            else "pack a model whose spec has output_activations: codebook under gumbel or commit",
        )
    codec, codes, dimension = seen[0]
    return codec.to_bytes(codes, dimension)
