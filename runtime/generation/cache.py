"""Keys and values of one attention layer, a slot for every token, stored in a representation.

What is stored of a token is written once, when the token comes, and never encoded again; attention reads the
slots as they are (`cache_attention`). The numbers are those of the `kv_cache` of a spec: keys and values as
they enter attention, projected along the features of a head. Rotations that lead stay in what is stored:
queries are rotated as keys are, and the result back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..code import FieldLayout
from ..entering import rotate, undo_rotation
from ..errors import RequestError
from ..kernels import Call, select
from ..kernels.cache_attention import decoded
from ..kernels.cpu.cache_attention import CpuCacheAttention, Stored
from ..kernels.cpu.cache_store import Storing, storing
from ..representation import Representation

_BEFORE = 4  # dimensions before what is stored of a token: keys or values, sequence, head, slot


@dataclass(frozen=True)
class Places:
    """Where tokens stand: the slot `[B, t]` of each, and how many slots are in use with them.

    `last`: those of every sequence are the last t in use, which is read sooner than positions are.
    """

    positions: Tensor
    used: int
    last: bool = False


class TokenCache:
    """Keys and values of B sequences and H heads of D features; `shape` is (B, H, slots, D).

    Raises RequestError for a representation that does not store each token by itself, or not D features.
    """

    def __init__(
        self,
        representation: Representation,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.representation = representation
        self._fields = {
            name: torch.zeros(
                field.stored_shape, dtype=torch.uint8 if field.packed else field.dtype, device=device
            )
            for name, field in _layout(representation, (2, *shape[:-1], 1, shape[-1]), dtype).items()
        }
        self.call = attention_call(representation, (shape[1], shape[3]), dtype, device)
        self.selection = select(self.call)
        self._natively: _Natively | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies are made of: without addresses."""
        return self.__dict__ | {"_natively": None}

    @property
    def nbytes(self) -> int:
        """Stored bytes of all slots."""
        return sum(tensor.nbytes for tensor in self._fields.values())

    def append(self, keys: Tensor, values: Tensor, places: Places) -> None:
        """Store tokens `[B, H, t, D]` in their slots."""
        core, rotation = self.representation.core, self.representation.rotation
        if not rotation.stages and self._on_processor.store(keys, values, places):
            return
        both = rotate(torch.stack((keys, values)).unsqueeze(-2), rotation)
        if rotation.stages and self._on_processor.store(both[0].squeeze(-2), both[1].squeeze(-2), places):
            return
        for name, new in core.pack(core.encode(both)).items():
            tokens, slots = _bytes(new), _bytes(self._fields[name])
            if places.last:
                slots[:, :, :, places.used - tokens.shape[3] : places.used] = tokens
            else:
                sequence = torch.arange(len(keys), device=keys.device)[:, None]
                slots[:, sequence, :, places.positions] = tokens.movedim((1, 3), (0, 1))

    def attend(self, queries: Tensor, places: Places) -> Tensor:
        """Attention of queries `[B, G H, t, D]`, H heads of the cache for G times as many, over the slots up
        to their own."""
        rotated, kernel = rotate(queries, self.representation.rotation), self.selection.kernel
        if isinstance(kernel, CpuCacheAttention) and kernel.takes(rotated):
            result = self._on_processor.attended(rotated, places)
        else:
            stored = {
                f"{kind}.{name}": tensor
                for kind, which in (("keys", 0), ("values", 1))
                for name, tensor in self._used(which, places).items()
            }
            result = kernel.run(self.call, rotated, stored | {"positions": places.positions}, None)
        return undo_rotation(self.representation, result)

    def dense(self, places: Places) -> tuple[Tensor, Tensor]:
        """Keys and values in use, decoded, `[B, H, used, D]`."""
        keys, values = (decoded(self.call, self._used(which, places), 0, places.used) for which in (0, 1))
        return undo_rotation(self.representation, keys), undo_rotation(self.representation, values)

    def _used(self, which: int, places: Places) -> dict[str, Tensor]:
        return {name: tensor[which, :, :, : places.used] for name, tensor in self._fields.items()}

    @property
    def _on_processor(self) -> _Natively:
        if self._natively is None:
            self._natively = _Natively(self.call, self._fields)
        return self._natively


@final
class _Natively:
    """What C++ does with the fields of a cache, whose places are worked out once and not at every token."""

    def __init__(self, call: Call, fields: Mapping[str, Tensor]) -> None:
        self._call = call
        self._sides = [{name: tensor[which] for name, tensor in fields.items()} for which in (0, 1)]
        found = [storing(call.representation, side, call.shape[1], call.dtype) for side in self._sides]
        self._storing = [one for one in found if isinstance(one, Storing)]
        self._stored: Stored | None = None

    def store(self, keys: Tensor, values: Tensor, places: Places) -> bool:
        """Write tokens to their slots; False where the stage has to."""
        positions = None if places.last else places.positions
        first = places.used - keys.shape[2]
        return bool(self._storing) and all(
            one.store(x, positions, first) for one, x in zip(self._storing, (keys, values), strict=True)
        )

    def attended(self, queries: Tensor, places: Places) -> Tensor:
        """Attention over the slots in use."""
        if self._stored is None:
            self._stored = Stored(self._call, *self._sides)
        return self._stored.attended(queries, places.positions, places.used)


def attention_call(
    representation: Representation, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Call:
    """Attention over a cache of H heads of D features, `shape` (H, D): what a kernel is selected for."""
    return Call("cache_attention", representation.core, shape, dtype, device.type)


def _layout(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, FieldLayout]:
    """The fields of tokens `[2, B, H, slots, 1, D]`; the 1 keeps tokens in bytes of their own."""
    try:
        representation.check(shape)
    except RequestError as error:
        raise error.at("kv_cache") from None
    layout = representation.core.layout(shape, dtype)
    for name, field in layout.items():
        if field.variable or field.stored_shape[:_BEFORE] != shape[:_BEFORE]:
            raise RequestError(
                f"{representation} does not store each token by itself: its {name} is of several",
                where="kv_cache",
                advice="quantize with strategy token or group",
            )
    return layout


def _bytes(tensor: Tensor) -> Tensor:
    """Small floats as bytes, which can be written everywhere."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
