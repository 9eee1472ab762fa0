"""compressed-tensors' former sparse checkpoints, which it wrote until 2025: read here, never written.

`sparse-24-bitmask` and `sparse-bitmask` store, of a weight `[N, K]`, `shape` int64, `bitmask` uint8
`[N, ceil(K/8)]` (lowest bits first), `compressed` (what is kept, row by row: `[N, K/2]` or `[total]`) and, of
the second alone, `row_offsets` `[N]`. What is kept are numbers, or codes of a quantised weight, whose scales
lie beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.packing import pack
from ...runtime.representation import Representation
from .arguments import Arguments
from .coded import FLOATS, Coded, table
from .entries import mapping, text
from .sparse import read_mask, read_sparse
from .words import to_words

FORMATS = ("sparse-24-bitmask", "sparse-bitmask")
_OWN = ("shape", "bitmask", "compressed", "row_offsets")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Masked:
    """A matrix of which some entries are kept: `mask` bool `[N, K]`, `kept` `[total]` in the order of rows;
    `structure` is what the config calls the mask."""

    mask: Tensor
    kept: Tensor
    structure: str

    def dense(self) -> Tensor:
        """The matrix, with zeros where nothing is kept."""
        found = torch.zeros(self.mask.shape, dtype=self.kept.dtype)
        same = torch.uint8 if found.dtype.itemsize == 1 else found.dtype  # no operators on 8-bit floats
        found.view(same)[self.mask] = self.kept.view(same)
        return found

    def numbers(self) -> tuple[Representation, dict[str, Tensor]]:
        """What is kept as numbers: a representation and its stored fields. Raises RequestError for codes."""
        if self.kept.dtype not in _FLOATS:
            name = str(self.kept.dtype).removeprefix("torch.")
            raise RequestError(
                f"compressed holds {name}, and weight_scale is missing", advice="copy the checkpoint again"
            )
        if not self.kept.numel():
            raise RequestError("bitmask keeps nothing", advice="leave this layer out of the sparse ones")
        kept = self.kept if self._each is None else self.kept.reshape(-1, self._each)
        return read_sparse(self._group(self.kept.dtype, None), self._places({"compressed": kept}))

    def codes(self, coded: Coded, arguments: Arguments) -> tuple[Representation, dict[str, Tensor]] | None:
        """The same where codes are kept; None where scales are not shared among them as they are stored, so
        that the codes of zeros have to be stored too."""
        count = self._shared(arguments)
        if count is None or not self._each:
            return None
        codes = coded.codes[self.mask].reshape(-1, self._each)
        document = replace(arguments, group_size=count or None).to_document() | _levels(arguments)
        own = {"weight_packed": to_words(codes, arguments.num_bits), "weight_scale": coded.scale}
        return read_sparse(self._group(coded.scale.dtype, document), self._places(own))

    @property
    def _each(self) -> int | None:
        """How many are kept of every row; None where rows differ."""
        counts = self.mask.sum(1)
        return int(counts[0]) if bool((counts == counts[0]).all()) else None

    def _shared(self, arguments: Arguments) -> int | None:
        """How many kept codes share a scale along a row; 0 for all of it, None where groups differ."""
        if not arguments.symmetric or arguments.num_bits < 2:
            return None
        if arguments.strategy in ("tensor", "channel"):
            return 0
        if arguments.strategy != "group" or self.mask.shape[1] % (arguments.group_size or 1):
            return None
        counts = self.mask.reshape(-1, arguments.group_size or 1).sum(1)
        return int(counts[0]) or None if bool((counts == counts[0]).all()) else None

    def _group(self, dtype: torch.dtype, weights: dict[str, Any] | None) -> dict[str, Any]:
        name = str(dtype).removeprefix("torch.")
        return {"dtype": name, "sparsity_structure": self.structure, "weights": weights}

    def _places(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as SPARSE.txt has them."""
        counts = self.mask.sum(1)
        offsets = {} if self._each else {"row_offsets": torch.cumsum(counts, 0) - counts}
        shape = torch.tensor(self.mask.shape, dtype=torch.int64)
        return {"weight_shape": shape, "bitmask": pack(self.mask.to(torch.uint8), 1), **offsets, **own}


def _levels(arguments: Arguments) -> dict[str, Any]:
    if arguments.type == "int":
        return {"grid": "twos", "levels": list(range(-arguments.half, arguments.half))}
    numbers = table(arguments.num_bits).tolist()
    return {"grid": FLOATS[arguments.num_bits], "levels": [x if isfinite(x) else None for x in numbers]}


def structure_of(quantization: Mapping[str, Any]) -> str:
    """What a config calls its masks. Raises RequestError for a sparse format that is not known here."""
    sparsity = mapping(quantization, "sparsity_config")
    form = (text(sparsity, "format") or "dense").replace("_", "-")
    if form not in (*FORMATS, "dense"):
        raise RequestError(
            f"sparsity_config has format {form!r}, and rhoc reads {' and '.join(FORMATS)}",
            advice="check config.json",
        )
    return text(sparsity, "sparsity_structure").lower()


def take_masked(tensors: dict[str, Tensor], structure: str) -> dict[str, Masked]:
    """The masked weights among the tensors of a checkpoint, which they are taken from, by their layer's path.

    Raises RequestError, with the path, for tensors that do not fit together.
    """
    found = {}
    for prefix in sorted(name.removesuffix(".bitmask") for name in tensors if name.endswith(".bitmask")):
        own = {name: tensors.pop(f"{prefix}.{name}") for name in _OWN if f"{prefix}.{name}" in tensors}
        path = prefix.removesuffix(".weight")  # which the first releases had in these names
        try:
            found[path] = _masked(own, structure)
        except RequestError as error:
            raise error.at(path) from None
    return found


def _masked(tensors: Mapping[str, Tensor], structure: str) -> Masked:
    mask, kept = read_mask(tensors, "shape"), tensors.get("compressed")
    total = int(mask.sum())
    if kept is None or kept.numel() != total:
        what = "is missing" if kept is None else f"holds {kept.numel()} numbers, and bitmask keeps {total}"
        raise RequestError(f"compressed {what}", advice="copy the checkpoint again")
    return Masked(mask, kept.reshape(-1), structure)
