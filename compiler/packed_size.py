"""What a packed model really stores: its represented weights, their entropy, and all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..runtime.code import FieldLayout
from ..runtime.codec import codecs
from ..runtime.entropy_coding import encode_field
from ..runtime.packed import Packed


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed model as it is, each stored tensor counted once however many weights share it.

    weights: how many numbers are represented. field_bytes: what their fields take, tables and scales among
    them. coded_bytes: the same with every integer field as rANS bytes where that is smaller. total_bytes: the
    whole model's, what stayed dense among it.
    """

    weights: int
    field_bytes: int
    coded_bytes: int
    total_bytes: int

    def to_document(self) -> dict[str, float | int | None]:
        """Plain JSON. Bits are for each represented number; None where none is."""
        return {
            "weights": self.weights,
            "bits": self._bits(self.field_bytes),
            "coded_bits": self._bits(self.coded_bytes),
            "bytes": self.total_bytes,
            "coded_total_bytes": self.total_bytes - self.field_bytes + self.coded_bytes,
        }

    def _bits(self, count: int) -> float | None:
        return 8 * count / self.weights if self.weights else None


def packed_size(packed: nn.Module) -> PackedSize:
    """Measured from the tensors of a packed form."""
    weights = [module for module in packed.modules() if isinstance(module, Packed)]
    fields = {key: pair for weight in weights for key, pair in _fields(weight)}
    stored = {_key(tensor): tensor.nbytes for tensor in packed.state_dict().values() if tensor.numel()}
    return PackedSize(
        weights=sum(weight.shape.numel() for weight in weights),
        field_bytes=sum(nominal for nominal, _ in fields.values()),
        coded_bytes=sum(coded for _, coded in fields.values()),
        total_bytes=sum(stored.values()) + sum(codec.nbytes for codec in codecs(packed).values()),
    )


def _fields(weight: Packed) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Each stored tensor of a weight: what it is known by, its bytes, and its bytes when coded."""
    stored, shape = weight.fields(), weight.arrangement.shape(tuple(weight.shape))
    layout = weight.representation.layout(shape, weight.encoded_dtype)
    numbers = weight.representation.unpack(stored, shape, weight.encoded_dtype).named()
    for name, tensor in stored.items():
        if tensor.numel():
            coded = _coded_bytes(numbers[name], layout[name])
            yield _key(tensor), (tensor.nbytes, min(tensor.nbytes, coded))


def _coded_bytes(numbers: Tensor, field: FieldLayout) -> int:
    """Bytes of a field by rANS; of numbers that are no integers, or coded already, those they have."""
    if field.variable or field.dtype.is_floating_point or field.dtype.is_complex:
        return numbers.nbytes
    return encode_field(numbers, field.bits, "rans").nbytes


def _key(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes
