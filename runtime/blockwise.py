"""Learning from a teacher block by block: each block's output is fitted to what the teacher's block gives.

The student's block is fed by the student's own blocks before it, the teacher's by the teacher's: the error
that came in is seen and may be made good (block-wise knowledge distillation of DilateQuant, Liu et al., arXiv
2409.14307, Eq. 15; with the teacher's input for both it would be ordinary block reconstruction). Both models
are run from the beginning up to the block, so nothing is kept between steps, and whatever else the block
reads of the model it reads as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import moved
from .errors import RequestError
from .projection import projections
from .tasks import Task

AUTO = "auto"  # blocks are found by how modules hold one another


@final
@dataclass(frozen=True, eq=False)
class Block:
    """One module of a student, and that of its teacher at the same path."""

    path: str
    student: nn.Module
    teacher: nn.Module

    def loss(self, task: Task, student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
        """Mean squared error of the block's output, with gradients for what lies in the block."""
        with torch.no_grad():
            wanted = _output(teacher, self.teacher, task, batch)
            found = _output(student, self.student, task, batch, graded=True)
        if wanted is None or found is None:
            raise RequestError(
                "the block was not reached when the model ran", where=self.path, advice=_CALLABLE
            )
        return F.mse_loss(found, wanted.to(found.dtype))


_CALLABLE = "compile with whole=False, so that modules are called as the model's code says"


@final
@dataclass(frozen=True)
class Turns:
    """How many steps in a row each block gets, one block after the other."""

    blocks: int
    steps: int

    def block(self, step: int) -> int:
        """Whose turn a 0-based step is."""
        return step * self.blocks // self.steps

    def within(self, step: int) -> int:
        """How many steps the block had before."""
        return step - self._first(self.block(step))

    @property
    def longest(self) -> int:
        """The most steps that a block gets."""
        return -(-self.steps // self.blocks)

    def _first(self, block: int) -> int:
        return -(-block * self.steps // self.blocks)


def find_blocks(student: nn.Module, teacher: nn.Module, pattern: str, task: Task) -> tuple[Block, ...]:
    """The blocks of a student in the order in which they run.

    `pattern` is `auto`, or a regular expression of module paths. `auto` takes modules right below the model;
    one that holds a list of alike modules, and a list, is looked into. Those without anything projected are
    left out.

    Raises RequestError when there are none, or the two models do not have the same.
    """
    others = dict(teacher.named_modules())
    found: dict[str, Block] = {}
    for path, module in _below(student) if pattern == AUTO else _matching(student, pattern):
        if next(projections(module), None) is None:
            continue
        if path not in others and pattern == AUTO:
            continue  # what holds the projections of a graph
        if path not in others:
            raise RequestError(
                "the teacher has no such block", where=path, advice="take a teacher of the same architecture"
            )
        found[path] = Block(path, module, others[path])
    called = _called(teacher, [block.teacher for block in found.values()], task)
    ordered = tuple(
        sorted((b for b in found.values() if b.teacher in called), key=lambda b: called.index(b.teacher))
    )
    if not ordered:
        raise RequestError(
            f"no block of the model is {pattern!r} and has something projected that runs",
            where="blocks",
            advice=f"give a pattern of module paths, for example blocks.[0-9]+, and {_CALLABLE}",
        )
    return ordered


def _below(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _is_list(child) or any(_is_list(each) and _alike(each) for each in child.modules()):
            yield from _below(child, f"{path}.")
        else:
            yield path, child


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _alike(module: nn.Module) -> bool:
    """Whether a list holds several modules of one class with modules of their own."""
    kinds = [type(child).__name__ for child in module.children() if any(True for _ in child.children())]
    return len(kinds) > 1 and len(set(kinds)) == 1


def _matching(module: nn.Module, pattern: str) -> Iterator[tuple[str, nn.Module]]:
    return ((path, each) for path, each in module.named_modules() if re.fullmatch(pattern, path))


class _Reached(Exception):
    """A block has run, and gave this."""

    def __init__(self, output: Any) -> None:
        super().__init__("a block has run")
        self.output = output


def _output(
    model: nn.Module, block: nn.Module, task: Task, batch: Any, graded: bool = False
) -> Tensor | None:
    """What a block gives (the first of its tensors) when the model runs on a batch, and no further.

    With gradients inside of the block alone, where `graded`. None when the block does not run.
    """

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        torch.set_grad_enabled(graded)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output)

    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        task.loss(model, batch)
    except _Reached as reached:
        leaves = torch.utils._pytree.tree_leaves(reached.output)
        return next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    finally:
        for hook in hooks:
            hook.remove()
    return None


@torch.no_grad()
def _called(model: nn.Module, blocks: list[nn.Module], task: Task) -> list[nn.Module]:
    """The blocks that run, in the order in which they first do."""
    order: list[nn.Module] = []

    def note(module: nn.Module, args: Any) -> None:
        if not any(module is each for each in order):
            order.append(module)

    hooks = [block.register_forward_pre_hook(note) for block in blocks]
    was_training = model.training
    device = next(model.parameters()).device
    try:
        task.loss(model.eval(), moved(task.batch(0, 0), device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return order
