"""What rhoc.json says of a packed model, checked on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .arrangement import Arrangement
from .bank import Bank, Rows
from .errors import RequestError
from .plain import from_plain, to_plain
from .representation import Representation
from .slots import Slots

FORMAT, VERSION = "rhoc packed model", 6
READABLE = (1, 2, 3, 4, 5, VERSION)  # 1 knew neither outputs nor arrangements, 2 no caches and no dense
# weights, 3 no centred norms, 4 no banks, 5 no codecs
_AGAIN = "save the model again"


@dataclass(frozen=True)
class PackedWeight:
    """How one weight is packed: stages of weight, input and output as plain data, what it decodes to, and as
    which matrix it was encoded. Without stages it is dense, and kept under its own name: only what is done
    around it is to be known. `bank` are steps of inputs that an index chooses, in the place of `input`. With
    `codec` outputs are encoded with tables, which lie in the file under `<path>.codec`."""

    stages: list[dict[str, Any]]
    input: list[dict[str, Any]]
    shape: tuple[int, ...]
    dtype: str
    output: list[dict[str, Any]] = field(default_factory=list)
    arrangement: dict[str, Any] = field(default_factory=dict)
    bank: dict[str, Any] = field(default_factory=dict)
    codec: bool = False

    @property
    def representation(self) -> Representation:
        """The weight's representation."""
        return from_plain(self.stages)

    @property
    def slots(self) -> Slots:
        """What inputs and outputs of its operations are projected to."""
        rows = rows_from_plain(self.bank) if self.bank else None
        return Slots(input=from_plain(self.input), output=from_plain(self.output), rows=rows)

    @property
    def matrix(self) -> Arrangement:
        """How the weight was read as a matrix."""
        given = self.arrangement
        return Arrangement(
            tuple(given.get("view", ())), tuple(given.get("order", ())), given.get("columns", 1)
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dense weight's dtype."""
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            raise RequestError(f"no dtype is called {self.dtype!r}", advice=_AGAIN)
        return found


def rows_to_plain(rows: Rows | None) -> dict[str, Any]:
    """A bank with its numbers as plain data; nothing for none."""
    if rows is None:
        return {}
    bank = {"index": rows.bank.index, "size": rows.bank.size, "stages": to_plain(rows.representation)}
    return bank | {"steps": list(rows.steps), "offsets": list(rows.offsets)}


def rows_from_plain(data: Mapping[str, Any]) -> Rows:
    """The inverse of `rows_to_plain`."""
    bank = Bank(_get(data, "index", str), _get(data, "size", int))
    steps, offsets = (tuple(map(float, _get(data, name, list))) for name in ("steps", "offsets"))
    return Rows(from_plain(_get(data, "stages", list)), bank, steps, offsets)


@dataclass(frozen=True)
class PackedDocument:
    """A packed model's spec with its digest, its weights by path, other names of tied tensors, by the path
    of modules that attend what their keys and values are represented in, and the paths of layer norms that
    subtract no mean (`runtime.folded.CentredNorm`)."""

    spec: dict[str, Any]
    spec_digest: str
    weights: dict[str, PackedWeight]
    aliases: dict[str, str]
    tensors_digest: str
    torch: str
    caches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    centred: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    @classmethod
    def from_document(cls, data: object) -> PackedDocument:
        """The inverse of `to_document`. Raises RequestError for anything else."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise RequestError(
                "not the document of a packed rhoc model", advice="was it written by another tool?"
            )
        if data.get("version") not in READABLE:
            advice = "use the version of rhoc that wrote it"
            raise RequestError(
                f"version {data.get('version')!r}, and this rhoc reads {VERSION}", advice=advice
            )
        weights = {
            path: PackedWeight(
                _get(entry, "stages", list),
                _get(entry, "input", list),
                tuple(int(size) for size in _get(entry, "shape", list)),
                _get(entry, "dtype", str),
                entry.get("output", []),
                entry.get("arrangement", {}),
                entry.get("bank", {}),
                entry.get("codec", False),
            )
            for path, entry in _get(data, "weights", dict).items()
        }
        return cls(
            spec=_get(data, "spec", dict),
            spec_digest=_get(data, "spec_digest", str),
            weights=weights,
            aliases=_get(data, "aliases", dict),
            tensors_digest=_get(data, "tensors_digest", str),
            torch=_get(data, "torch", str),
            caches=_get(data, "caches", dict) if data["version"] >= 3 else {},
            centred=_get(data, "centred", list) if data["version"] >= 4 else [],
        )


def _get(data: Any, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, kind):
        raise RequestError(f"{key!r} is missing or of the wrong kind", advice=_AGAIN)
    return value
