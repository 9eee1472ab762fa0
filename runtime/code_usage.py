"""How often the vectors of trained tables are chosen, and what becomes of those that no one chooses."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor, nn

from .estimators.step_rule import Beside, Stepping
from .seeds import derived
from .table_projection import Kept, TableProject, table_names, table_projections

_APART = 1e-3  # of a table's deviation: copies that are alike would never be chosen by distance


@final
class CodeUsage(Stepping):
    """Follows the frequencies of codes over the optimiser's steps, and puts dead vectors to use.

    Every so many steps vectors chosen less often than `below` become copies of the most chosen ones, which
    share their frequency from then on. Where more than half are dead only as many are replaced as are alive.
    None are after the last step, where nothing would come of it. Draws follow from the step alone, so that a
    resumed run goes on alike.
    """

    def __init__(self, projection: TableProject, beside: Beside) -> None:
        self.projection, self.beside = projection, beside
        self._step = self._steps = 0
        self._names = table_names(projection.representation, projection.estimators)

    @property
    def kept(self) -> Kept:
        """What lies beside the weight."""
        return Kept.of(self.projection.levels, [self.beside[name] for name in self._names])

    def at(self, step: int, steps: int) -> None:
        self._step, self._steps = step, steps

    def before(self) -> None:
        return

    @torch.no_grad()
    def after(self) -> None:
        rule = self.projection.kept
        kept = self.kept
        for usage, seen in zip(kept.usage, kept.seen, strict=True):
            total = seen.sum(1, keepdim=True)
            if bool((total > 0).all()):
                usage.mul_(rule.ema).add_(seen / total, alpha=1 - rule.ema)
            seen.zero_()
        done = self._step + 1
        if rule.reassign is not None and done % rule.reassign == 0 and done < self._steps:
            for place, (tables, usage) in enumerate(zip(kept.tables, kept.usage, strict=True)):
                for book in range(len(tables)):
                    seed = derived(self._step, place, book)
                    reassign(tables[book], usage[book], rule.below, seed)

    def detach(self) -> None:
        return


def code_usages(model: nn.Module, trained: Collection[int]) -> list[Stepping]:
    """The usage of every activation of a model whose tables are among `trained`, ids of parameters."""
    found: dict[str, Stepping] = {}
    for path, projection in table_projections(model):
        usage = CodeUsage(projection, Beside(model, path))
        if any(id(table) in trained for table in usage.kept.tables):
            found.setdefault(path, usage)
    return list(found.values())


def reassign(table: Tensor, usage: Tensor, below: float, seed: int) -> int:
    """Replace the dead vectors of a table `[k, d]` with frequencies `[k]`, both in place; how many were."""
    dead = (usage < below).nonzero().flatten()
    alive = len(usage) - len(dead)
    count = min(len(dead), alive)
    if not count:
        return 0
    dead = dead[:count]
    sources = usage.argsort(descending=True, stable=True)[:count]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator).to(table)
    table[dead] = table[sources] + _APART * table.std() * noise
    usage[sources] /= 2
    usage[dead] = usage[sources]
    return count
