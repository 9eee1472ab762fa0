"""A file of tensors read into memory of their own, one after another.

The file is in the format of safetensors: the length of a header, the header in JSON, and the bytes of the
tensors. Reading it here takes the memory of the tensors and no more, gives them the alignment that torch's
own have, and leaves no tie to a file that others may change while the model runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_LENGTH = 8  # bytes that say how long the header is
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: it is no file of tensors, or not a whole one.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        try:
            header = json.loads(stream.read(length))
            return {
                name: _read(stream, entry, _LENGTH + length)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"its header is not one of tensors: {error}") from error


def _read(stream: BinaryIO, entry: Any, start: int) -> Tensor:
    """The tensor that an entry of the header is about; offsets count from `start`."""
    tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="cpu")
    first, last = entry["data_offsets"]
    if first < 0 or last - first != tensor.nbytes:
        raise ValueError(f"{last - first} bytes are no {entry['dtype']} of shape {entry['shape']}")
    stream.seek(start + first)
    if tensor.nbytes and stream.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) < tensor.nbytes:  # type: ignore[attr-defined]
        raise ValueError("it ends before the last of its tensors")
    return tensor
