"""Decoded weights as plain safetensors: what every other program reads, and no smaller than before."""

from __future__ import annotations

from pathlib import Path

from .compressed_tensors import apart
from .folder import write_folder
from .source import Source
from .untold import untold


def export_dense(directory: str | Path, source: Source, beside: Path | None = None) -> list[str]:
    """Write decoded weights under the names that they had; what is to be known of it.

    Raises RequestError when the directory holds something, WorkError when it cannot be written.
    """
    tensors, done = source.dense(), set()
    for path, packed in source.weights.items():
        if id(packed) in done and source.config:
            continue  # transformers ties it again
        done.add(id(packed))
        tensors[path] = packed.decode().contiguous()
    write_folder(directory, source.config, apart(tensors), beside)
    slots = {
        f"{name} were {slot}, and run dense in what was written"
        for packed in source.weights.values()
        for name, slot in (("inputs", packed.slots.input), ("outputs", packed.slots.output))
        if not slot.is_dense
    }
    return sorted({*slots, *(f"left out of what was written: {what}" for what in untold(source.spec))})
