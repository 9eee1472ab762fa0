"""How many parameters of a model are not zero: now, and in the mean over its training.

Laws of sparse models take N as the parameters that are not zero (Frantar et al., 2309.08520), and where
sparsity grows while a model is trained, as their mean over training (Jin et al., 2501.12486).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod

from torch import nn

from .llama import counted_parameters
from .program import Program
from .projection import latent_parameters
from .representation import Representation
from .stages.sparsify import Sparsify


def nonzero_parameters(model: nn.Module, embedding: bool = False) -> int:
    """Parameters that are not zero as scheduled numbers are now, each shared one counted once.

    A projected weight counts what its sparse stages keep, which follows from its shape; all others count in
    full. Embeddings are left out unless `embedding` is true, as by `count_parameters`.
    """
    return sum(kept(now, shape) for _, now, shape in _counted(model, embedding))


def mean_nonzero_parameters(model: nn.Module, steps: int, embedding: bool = False) -> float:
    """The mean of `nonzero_parameters` over the steps of a run, as schedules will have had it."""
    total = 0.0
    scheduled: Counter[tuple[Program, tuple[int, ...]]] = Counter()
    for program, now, shape in _counted(model, embedding):
        if program is not None and program.schedules:
            scheduled[program, shape] += 1
        else:
            total += kept(now, shape)
    for (program, shape), weights in scheduled.items():
        taken = Counter(tuple(program.values(step, steps)) for step in range(steps))
        numbers = sum(
            times * kept(program.representation_at(values), shape) for values, times in taken.items()
        )
        total += weights * numbers / steps
    return total


def kept(representation: Representation, shape: tuple[int, ...]) -> int:
    """How many numbers of a tensor are not zeroed by the sparse stages of a chain (those inside of sums,
    products and splits left aside)."""
    for stage in representation.unwrapped:
        if isinstance(stage, Sparsify):
            shape = stage.pattern.carry_shape(shape)
    return prod(shape)


def _counted(
    model: nn.Module, embedding: bool
) -> Iterator[tuple[Program | None, Representation, tuple[int, ...]]]:
    """Every parameter that counts: its program, its representation now, and the shape that this sees."""
    projected = {id(weight): projection for _, weight, projection in latent_parameters(model)}
    for parameter in counted_parameters(model, embedding):
        projection = projected.get(id(parameter))
        shape = tuple(parameter.shape)
        if projection is None:
            yield None, Representation(), shape
        else:
            yield projection.program, projection.representation_now, projection.arrangement.shape(shape)
