"""What every parameter became under a spec, or why it stayed dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from torch import nn

from ..passes.assignment import Assignment
from ..runtime.experts import fields_by_expert
from ..runtime.generation.cache import attention_call
from ..runtime.kernels import Call, select
from ..runtime.kernels.composed import ComposedInput
from ..runtime.learned import input_names
from ..runtime.llama import Attention
from .allocation_result import AllocationResult
from .caches import Cache
from .capture import Captured, Refusal
from .decide import Decision
from .gaussian_errors import gaussian_error
from .spec import Spec
from .transform import Transformed


@dataclass(frozen=True)
class Row:
    """One parameter. `bits_per_weight` counts every stored field, what weights share with the first of them;
    `gmse` is the error on Gaussian data.

    `kernel` is what runs it in the packed form where the model is now; `reason` says why it stayed dense, why
    other kernels refused, or what else is to be known.
    """

    path: str
    op: str
    shape: tuple[int, ...]
    representation: str
    input_representation: str
    bits_per_weight: float
    gmse: float
    kernel: str
    reason: str


@dataclass(frozen=True)
class CacheRow:
    """A module that attends with represented keys and values. `kernel` is what attends over them as they are
    stored when tokens are generated, '' where nothing does; `reason` says who refused before it, or what else
    is to be known."""

    path: str
    representation: str
    kernel: str
    reason: str

    def __str__(self) -> str:
        return "  ".join(
            text for text in (self.path, "kv_cache", self.representation, self.kernel, self.reason) if text
        )


@dataclass(frozen=True)
class PassRow:
    """What a pass over the whole model did on one of its graphs; `part` is '' for the model."""

    part: str
    name: str
    changed: bool
    reached: int
    missed: int

    def __str__(self) -> str:
        done = "changed the graph or its weights" if self.changed else "changed nothing"
        counts = f", {self.reached} reached, {self.missed} not" if self.reached + self.missed else ""
        return f"{self.name} on {self.part or 'the model'}: {done}{counts}"


@dataclass(frozen=True)
class Explanation:
    """Every parameter of a model, each once, and what they take together; buffers are not counted.

    `effective_parameters` needs a fitted law; it is None until one has spoken.
    """

    spec: str
    digest: str
    parameters: tuple[Row, ...]
    total_bytes: int
    dense_bytes: int
    captured: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    caches: tuple[CacheRow, ...] = ()
    passes: tuple[PassRow, ...] = ()
    allocation: dict[str, Any] | None = None
    effective_parameters: float | None = None
    effective_parameters_reason: str = "no law was applied"

    def to_document(self) -> dict[str, object]:
        """Plain data, as `rhoc explain --json` prints it."""
        document: dict[str, object] = asdict(self)
        document["parameters"] = [asdict(row) | {"shape": list(row.shape)} for row in self.parameters]
        document["caches"] = [asdict(cache) for cache in self.caches]
        document["passes"] = [asdict(row) for row in self.passes]
        document["captured"] = list(self.captured)
        document["refusals"] = [asdict(refusal) for refusal in self.refusals]
        return document

    def rows(self) -> list[tuple[str, ...]]:
        """A table as text: a head, then one row per parameter."""
        head = ("path", "op", "shape", "representation", "bits", "gmse", "kernel", "reason")
        return [head, *(_text(row) for row in self.parameters)]

    def __str__(self) -> str:
        table = self.rows()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
        lines = [
            "  ".join(
                [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]
            ).rstrip()
            for row in table
        ]
        share = self.total_bytes / self.dense_bytes if self.dense_bytes else 1.0
        lines += remarks(self.to_document())
        return "\n".join([*lines, f"{self.total_bytes:,} of {self.dense_bytes:,} bytes ({share:.1%})"])


def remarks(document: Mapping[str, Any]) -> list[str]:
    """What else there is to say of an explained model, a line each: caches, passes, the choice in a
    budget."""
    lines = [str(CacheRow(**row)) for row in document["caches"]]
    lines += [str(PassRow(**row)) for row in document["passes"]]
    allocation = document["allocation"]
    if allocation is not None:
        counts: Counter[str] = Counter()
        for choice in allocation["choices"]:
            counts[choice["candidate"]] += choice["count"]
        names = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        proof = f"{allocation['status']}, gap {allocation['gap']:.3g}"
        bits = f"{allocation['bits_per_weight']:.3f} bits per weight"
        lines.append(f"allocated by {allocation['measure']} ({proof}), {bits}: {names}")
    return lines


def explain(
    spec: Spec,
    captured: Captured,
    decisions: tuple[Decision, ...],
    caches: tuple[Cache, ...] = (),
    transformed: tuple[Transformed, ...] = (),
    allocation: AllocationResult | None = None,
) -> Explanation:
    """The table of a compiled model."""
    replaced = {path for d in decisions if not d.assignment.weight.is_dense for path in d.held.computed_from}
    stored = [
        0 if decision.held.path in replaced or _unchanged(decision) else _stored_bytes(decision)
        for decision in decisions
    ] + [decision.assignment.bank_bytes + decision.assignment.table_bytes for decision in decisions]
    return Explanation(
        spec=spec.name,
        digest=spec.digest,
        parameters=tuple(_row(captured, decision) for decision in decisions),
        total_bytes=sum(stored),
        dense_bytes=sum(d.held.tensor.nbytes for d in decisions if not d.held.computed_from),
        captured=tuple(
            f"{fragment.path or 'the model'} ({fragment.strategy})" for fragment in captured.fragments
        ),
        refusals=tuple(captured.refusals),
        caches=tuple(_cache_row(captured.root, cache) for cache in caches),
        passes=tuple(_passes(transformed)),
        allocation=None if allocation is None else allocation.to_document(),
    )


def _cache_row(root: nn.Module, cache: Cache) -> CacheRow:
    stored, kernel, notes = cache.rule.representation("kv_cache"), "", [cache.note] if cache.note else []
    generating = (m for m in root.get_submodule(cache.path).modules() if isinstance(m, Attention))
    if (module := next(generating, None)) is not None:
        table = module.cosine
        call = attention_call(stored, (module.heads, table.shape[1]), table.dtype, table.device)
        selection = select(call)
        kernel, notes = str(selection.kernel), [*notes, *map(str, selection.refusals)]
    return CacheRow(cache.path, str(stored), kernel, "; ".join(notes))


def _passes(transformed: tuple[Transformed, ...]) -> Iterator[PassRow]:
    for each in transformed:
        for step in each.steps:
            hits = [r.reach.reached for r in each.reached if (r.part, r.name) == (step.part, step.name)]
            yield PassRow(step.part, step.name, step.changed, sum(hits), len(hits) - sum(hits))


def _stored_bytes(decision: Decision) -> int:
    """Bytes of a weight; what it shares with others is counted with the first of them."""
    weight, shape, dtype = decision.assignment.weight, decision.held.matrix_shape, decision.held.tensor.dtype
    return weight.nbytes(shape, dtype) - (0 if decision.leads else weight.shared_nbytes(shape, dtype))


def _unchanged(decision: Decision) -> bool:
    """Whether this is a computed weight that stays so: what it is computed from is stored."""
    return bool(decision.held.computed_from) and decision.assignment.weight.is_dense


def _row(captured: Captured, decision: Decision) -> Row:
    held, assignment = decision.held, decision.assignment
    shape = tuple(held.tensor.shape)
    kernel, refusals = _kernel(decision)
    weight = assignment.weight
    return Row(
        path=held.path,
        op=held.operation or _owner_name(captured.root, held.path),
        shape=shape,
        representation=str(weight),
        input_representation=str(assignment.input),
        bits_per_weight=8 * _stored_bytes(decision) / max(prod(shape), 1),
        gmse=gaussian_error(weight, verify=False).value if weight.stages else 0.0,
        kernel=kernel,
        reason="; ".join([*([decision.reason] if decision.reason else []), *_bank(assignment), *refusals]),
    )


def _bank(assignment: Assignment) -> list[str]:
    """What an index chooses of the inputs, and what that takes."""
    if assignment.bank is None:
        return []
    names = " and ".join(f"{name.removeprefix('input_')}s" for name in input_names(assignment.learned_input))
    index, size = assignment.bank.index, assignment.bank.size
    return [f"{names} of its inputs by {index}, {size} of each: {assignment.bank_bytes} bytes"]


_BY_KERNELS = ("linear", "embedding", "matmul", "grouped_matmul")
"""Operations that kernels of linears and lookups compute."""


def _kernel(decision: Decision) -> tuple[str, list[str]]:
    """The kernel that the packed form would run where the tensor is now, and who refused before it."""
    held, weight = decision.held, decision.assignment.weight
    if weight.is_dense or held.operation is None:
        return "torch", []
    tensor = held.tensor
    shape = held.matrix_shape
    if fields_by_expert(weight.core, shape, tensor.dtype) is not None:
        shape = shape[1:]
    if held.operation not in _BY_KERNELS or len(shape) != 2:
        return "decode", []
    operation = "embedding" if held.operation == "embedding" else "linear"
    call = Call(operation, weight.core, shape, tensor.dtype, tensor.device.type)
    entering = decision.assignment.input
    if operation == "linear" and (entering.stages or weight.rotation.stages):
        whole = replace(call, operation="input_linear", input=entering, rotation=weight.rotation)
        selection = select(whole)
        if selection.kernel.name != ComposedInput.name:
            return str(selection.kernel), [str(refusal) for refusal in selection.refusals]
    selection = select(call)
    return str(selection.kernel), [str(refusal) for refusal in selection.refusals]


def _owner_name(root: nn.Module, path: str) -> str:
    return type(root.get_submodule(path.rpartition(".")[0])).__name__


def _text(row: Row) -> tuple[str, ...]:
    shape = "x".join(str(size) for size in row.shape) or "scalar"
    both = row.representation
    if row.input_representation != "dense":
        both += f" | input {row.input_representation}"
    error = f"{row.gmse:.4g}" if row.gmse else ""
    return row.path, row.op, shape, both, f"{row.bits_per_weight:.3f}", error, row.kernel, row.reason
