"""What a packed model is worth at a task, and what it stores."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ..runtime.batches import examples, moved
from ..runtime.errors import RequestError
from ..runtime.tasks import Task
from .packed_size import packed_size


@torch.no_grad()
def quality(form: nn.Module, task: Task) -> dict[str, float]:
    """`loss`, and the task's metrics by name: means over the validation examples, of a form in eval()."""
    totals: dict[str, float] = defaultdict(float)
    count = 0
    device = next((t.device for t in form.state_dict().values()), torch.device("cpu"))
    for batch in task.validation():
        here, number = moved(batch, device), examples(batch)
        found = {**task.metrics(form, here), "loss": float(task.loss(form, here))}
        for name, value in found.items():
            totals[name] += value * number
        count += number
    if not count:
        raise RequestError("there is nothing to validate on", where="task", advice="give one batch at least")
    return {name: total / count for name, total in totals.items()}


def packed_quality(packed: nn.Module, task: Task) -> dict[str, Any]:
    """Both as plain JSON: what `packed_size` says, and `quality` of the same model."""
    return {**packed_size(packed).to_document(), "quality": quality(packed, task)}
