"""The projection of an activation onto trained tables, which are parameters beside a weight.

Beside the weight whose outputs are encoded lie `output_codebook`, how often its vectors were chosen
(`output_usage`, a moving average, and `output_seen`, the counts since the last step), and for estimators that
have one the inverse temperature of each codebook. A sum of codebooks has these for every term, numbered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RequestError
from .estimators.base import Estimator
from .estimators.kept_tables import KeptTables, kept_tables_of
from .projection import Project, owned
from .representation import Representation
from .vector_levels import Levels, levels_of

CODEBOOK, USAGE, SEEN, TEMPERATURE = (
    "output_codebook",
    "output_usage",
    "output_seen",
    "output_inverse_temperature",
)


def keeps_tables(representation: Representation, estimators: tuple[Estimator, ...]) -> KeptTables | None:
    """The estimator that keeps tables of an activation, None where none does."""
    return None if representation.is_dense else kept_tables_of(estimators)


def table_names(representation: Representation, estimators: tuple[Estimator, ...]) -> tuple[str, ...]:
    """What follows the name of a weight, and `_`, in the names of what its outputs' projection reads: tables,
    frequencies, counts, and the inverse temperatures where there are any."""
    kept = keeps_tables(representation, estimators)
    if kept is None:
        return ()
    count = len(levels_of(representation).stages)
    each = [f"{name}_{i}" if count > 1 else name for name in (CODEBOOK, USAGE, SEEN) for i in range(count)]
    return tuple(each) if kept.first_temperature is None else (*each, TEMPERATURE)


def first_tables(
    representation: Representation, estimators: tuple[Estimator, ...], like: Tensor
) -> tuple[Tensor, ...]:
    """What `table_names` names, before training, where the weight `like` is, and trained where that is."""
    kept, levels = keeps_tables(representation, estimators), levels_of(representation)
    assert kept is not None
    device, trained = like.device, like.requires_grad
    tables: list[Tensor] = [nn.Parameter(table.to(device), trained) for table in levels.first()]
    even = [torch.full(t.shape[:2], 1 / t.shape[1], device=device) for t in tables]
    made = [*tables, *even, *(torch.zeros_like(usage, dtype=torch.int64) for usage in even)]
    if kept.first_temperature is not None:
        start = torch.full((levels.count,), kept.first_temperature, device=device)
        made.append(nn.Parameter(start, trained))
    return tuple(made)


@dataclass(frozen=True)
class Kept:
    """What lies beside a weight, sorted: one of each for every term."""

    tables: tuple[Tensor, ...]
    usage: tuple[Tensor, ...]
    seen: tuple[Tensor, ...]
    temperature: Tensor | None

    @classmethod
    def of(cls, levels: Levels, beside: Sequence[Tensor]) -> Kept:
        """From the tensors in the order of `table_names`."""
        n = len(levels.stages)
        rest = beside[3 * n] if len(beside) > 3 * n else None
        return cls(tuple(beside[:n]), tuple(beside[n : 2 * n]), tuple(beside[2 * n : 3 * n]), rest)


class TableProject(Project):
    """A projection onto trained tables; it holds none of them itself and is called with them.

    `weight_path` is the path of the weight that they lie beside, in the module that holds the projection. In
    train() codes are chosen as the estimator says, and counted; in eval() they are the nearest, and the
    gradient passes straight through.
    """

    def __init__(
        self,
        representation: Representation,
        estimators: tuple[Estimator, ...],
        *,
        dimension: int = -1,
        weight_path: str = "",
    ) -> None:
        super().__init__(representation, estimators, dimension=dimension)
        kept = kept_tables_of(estimators)
        assert kept is not None
        self.kept, self.levels, self.weight_path = kept, levels_of(representation), weight_path
        self.stepped = False

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype."""
        return self.along(x, self.dimension, *beside)

    def along(self, x: Tensor, dimension: int, *beside: Tensor) -> Tensor:
        """The projection along a dimension of `x`, counted from the end; a vector has one only."""
        dimension = max(dimension, -x.dim())
        moved = x.movedim(dimension, -1)
        self.levels.check(moved.shape[-1])
        kept = Kept.of(self.levels, beside)
        result = (
            self._trained(moved, kept)
            if self.training and torch.is_grad_enabled()
            else self._nearest(moved, kept)
        )
        return result.to(x.dtype).movedim(-1, dimension)

    def _nearest(self, x: Tensor, kept: Kept) -> Tensor:
        tables = self.levels.stored([table.detach() for table in kept.tables])
        found = self.levels.decode(self.levels.encode(x, tables), tables)
        return x + (found - x).detach() if x.requires_grad and torch.is_grad_enabled() else found

    def _trained(self, x: Tensor, kept: Kept) -> Tensor:
        if not self.stepped:
            raise RequestError(
                f"{self.kept.kind!r} acts around the optimiser's steps, and knows of no optimiser",
                where=self.weight_path,
                advice="call rhoc.attach(model, optimizer, steps) before training",
            )
        vectors = x.reshape(-1, self.levels.size).float()
        rest, total = vectors, torch.zeros_like(vectors)
        penalty: Tensor | None = None
        counted, place = self._counters(kept), 0
        for table, seen in zip(self.levels.steps(self.levels.rounded(kept.tables)), counted, strict=True):
            groups = table.shape[0]
            temperature = (
                None if kept.temperature is None else kept.temperature[place : place + groups].float()
            )
            place += groups
            chosen = self.kept.choose(rest.reshape(len(rest), groups, -1), table, temperature)
            found = chosen.vectors.flatten(1)
            with torch.no_grad():
                seen.scatter_add_(1, chosen.codes.T, torch.ones_like(chosen.codes.T))
            total, rest = total + found, self.kept.left(rest, found)
            if chosen.penalty is not None:
                penalty = chosen.penalty if penalty is None else penalty + chosen.penalty
        passed = self.kept.passed(vectors, total)
        if penalty is not None:
            passed = _Also.apply(passed, penalty)  # type: ignore[no-untyped-call]
        return passed.reshape(x.shape)

    def _counters(self, kept: Kept) -> list[Tensor]:
        """The counts of each step of encoding, views of those of its stage."""
        found: list[Tensor] = []
        for stage, seen in zip(self.levels.stages, kept.seen, strict=True):
            found += [seen] if stage.composition == "product" else list(seen.unsqueeze(1))
        return found


@dataclass(frozen=True)
class TableOutput:
    """A projection of outputs with what lies beside the weight, for operations that are in no graph."""

    projection: TableProject
    beside: tuple[Tensor, ...]

    def along(self, x: Tensor, dimension: int) -> Tensor:
        """The projection along a dimension of `x`, counted from the end."""
        return self.projection.along(x, dimension, *self.beside)


class _Also(torch.autograd.Function):
    """A tensor as it is, and in the backward pass a scalar minimised besides, whatever the loss is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Tensor) -> Tensor:
        ctx.like = penalty.dtype, penalty.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        dtype, device = ctx.like
        return grads[0], torch.ones((), dtype=dtype, device=device)


def table_projections(model: nn.Module) -> Iterator[tuple[str, TableProject]]:
    """Every projection onto trained tables, with the path of the weight that these lie beside; a weight that
    is read twice has two."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for projection, owner in owned(prefix, module):
            if isinstance(projection, TableProject) and id(projection) not in seen:
                seen.add(id(projection))
                yield f"{owner}.{projection.weight_path}".lstrip("."), projection
