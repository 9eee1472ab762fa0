"""The diagonal of the empirical Fisher matrix: mean squared gradients of a dense model's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..runtime.determinism import seeded
from ..runtime.errors import RequestError
from ..runtime.structure import undisturbed

Batch = TypeVar("Batch")


def fisher(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Tensor]:
    """Mean squared gradients of the loss over batches, in float32 or more, in the shapes of the parameters.

    Each batch is one observation. Batches of one example give the diagonal of the empirical Fisher matrix;
    larger ones, whose gradients partly cancel, one that is smaller by about the size of the batch, which
    compares layers alike. The model runs in eval(); its modes, buffers and `.grad` stay as they were.

    Args:
        loss: a scalar, from the model and a batch: `lambda model, batch: cross_entropy(model(*batch), ...)`.

    Returns:
        By the path of every parameter that the loss depends on, a tied one by the first of its paths. Those
        that take no gradient are left out.

    Raises:
        RequestError: no batches, or a loss that is not one finite number that depends on the parameters.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums: dict[str, Tensor] = {}
    count = 0
    with undisturbed(model), torch.enable_grad(), seeded(0):
        for count, batch in enumerate(batches, start=1):
            gradients = _gradients(loss(model, batch), list(named.values()), count)
            for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
                if gradient is not None:
                    precise = torch.promote_types(parameter.dtype, torch.float32)
                    square = gradient.to(precise).square()
                    sums[name] = sums[name].add_(square) if name in sums else square
    if count == 0:
        raise RequestError("there are no batches", where="fisher", advice="give one at least")
    return {name: total.div_(count) for name, total in sums.items()}


def _gradients(value: Tensor, parameters: list[nn.Parameter], number: int) -> tuple[Tensor | None, ...]:
    where = f"batch {number}"
    if value.numel() != 1 or not value.requires_grad:
        message = (
            f"the loss has {value.numel()} numbers" if value.numel() != 1 else "the loss has no gradient"
        )
        advice = "return one number that depends on the model's trained parameters"
        raise RequestError(message, where=where, advice=advice)
    if not bool(value.detach().isfinite().all()):
        advice = "take the batch out, or find where the model overflows"
        raise RequestError(f"the loss is {float(value.detach())}", where=where, advice=advice)
    return torch.autograd.grad(value.reshape(()), parameters, allow_unused=True)
