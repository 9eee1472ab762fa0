"""What every parameter became under a spec, or why it stayed dense."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from torch import nn

from ..runtime.kernels import Call, select
from .capture import Captured, Refusal
from .decide import Decision
from .gaussian_errors import gaussian_error
from .spec import Spec


@dataclass(frozen=True)
class Row:
    """One parameter. `bits_per_weight` counts every stored field; `gmse` is the error on Gaussian data.

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
    effective_parameters: float | None = None
    effective_parameters_reason: str = "no law was applied"

    def to_document(self) -> dict[str, object]:
        """Plain data, as `rhoc explain --json` prints it."""
        document: dict[str, object] = asdict(self)
        document["parameters"] = [asdict(row) | {"shape": list(row.shape)} for row in self.parameters]
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
        return "\n".join([*lines, f"{self.total_bytes:,} of {self.dense_bytes:,} bytes ({share:.1%})"])


def explain(spec: Spec, captured: Captured, decisions: tuple[Decision, ...]) -> Explanation:
    """The table of a compiled model."""
    tensors = [decision.held.tensor for decision in decisions]
    stored = [
        decision.assignment.weight.nbytes(tuple(tensor.shape), tensor.dtype)
        for decision, tensor in zip(decisions, tensors, strict=True)
    ]
    return Explanation(
        spec=spec.name,
        digest=spec.digest,
        parameters=tuple(_row(captured, decision) for decision in decisions),
        total_bytes=sum(stored),
        dense_bytes=sum(tensor.nbytes for tensor in tensors),
        captured=tuple(
            f"{fragment.path or 'the model'} ({fragment.strategy})" for fragment in captured.fragments
        ),
        refusals=tuple(captured.refusals),
    )


def _row(captured: Captured, decision: Decision) -> Row:
    held, assignment = decision.held, decision.assignment
    shape, dtype = tuple(held.tensor.shape), held.tensor.dtype
    kernel, refusals = _kernel(decision)
    weight = assignment.weight
    return Row(
        path=held.path,
        op=held.operation or _owner_name(captured.root, held.path),
        shape=shape,
        representation=str(weight),
        input_representation=str(assignment.input),
        bits_per_weight=weight.bits_per_weight(shape, dtype) if prod(shape) else 0.0,
        gmse=gaussian_error(weight, verify=False).value if weight.stages else 0.0,
        kernel=kernel,
        reason="; ".join([*([decision.reason] if decision.reason else []), *refusals]),
    )


def _kernel(decision: Decision) -> tuple[str, list[str]]:
    """The kernel that the packed form would run where the tensor is now, and who refused before it."""
    held, weight = decision.held, decision.assignment.weight
    if weight.is_dense or held.operation is None:
        return "torch", []
    tensor = held.tensor
    call = Call(held.operation, weight.core, tuple(tensor.shape), tensor.dtype, tensor.device.type)
    selection = select(call)
    return selection.kernel.name, [str(refusal) for refusal in selection.refusals]


def _owner_name(root: nn.Module, path: str) -> str:
    return type(root.get_submodule(path.rpartition(".")[0])).__name__


def _text(row: Row) -> tuple[str, ...]:
    shape = "x".join(str(size) for size in row.shape) or "scalar"
    both = row.representation
    if row.input_representation != "dense":
        both += f" | input {row.input_representation}"
    error = f"{row.gmse:.4g}" if row.gmse else ""
    return row.path, row.op, shape, both, f"{row.bits_per_weight:.3f}", error, row.kernel, row.reason
