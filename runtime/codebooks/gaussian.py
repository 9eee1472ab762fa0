"""Tables that are optimal for independent standard normal numbers (HIGGS, 2411.17525, section 4).

They are computed once by `make_tables` and ship beside this file, so nothing of them is stored with a tensor.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).with_name("gaussian.safetensors")


@lru_cache(maxsize=1)
def shipped() -> dict[tuple[int, int], float]:
    """The tables that ship: (dimensions, bits) to the Gaussian error that was measured for it."""
    from safetensors import safe_open

    if not FILE.exists():
        return {}
    with safe_open(str(FILE), framework="pt") as file:
        facts = json.loads(file.metadata()["tables"])
    return {(entry["dimensions"], entry["bits"]): entry["gmse"] for entry in facts}


@lru_cache(maxsize=8)
def gaussian_table(dimensions: int, count: int) -> Tensor | None:
    """The table of `count` vectors, float32 `[count, dimensions]`; None where none ships."""
    from safetensors import safe_open

    bits = count.bit_length() - 1
    if count != 1 << bits or (dimensions, bits) not in shipped():
        return None
    with safe_open(str(FILE), framework="pt") as file:
        table: Tensor = file.get_tensor(table_name(dimensions, bits))
    return table.to(torch.float32)


def table_name(dimensions: int, bits: int) -> str:
    """The name of a table in the file."""
    return f"d{dimensions}b{bits}"
