"""A task made of plain functions, as a user's file defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from .batches import examples, moved, same, tensors
from .digest import digest, digest_bytes
from .errors import RequestError
from .tasks import Task
from .units import EXAMPLES, Units

SKELETON = """a task is three functions, for example
    def batch(step, seed): return images[step % 100], labels[step % 100]  # what a step is trained on
    def validation(): return [(test_images, test_labels)]  # what the result is measured on
    def loss(model, batch): return cross_entropy(model(batch[0]), batch[1])  # a mean over examples
and may have outputs(model, batch), logits for a teacher; metrics(model, batch), numbers by name to measure
finished models by; inputs(batch), a tuple that the model is called with; step_tokens, how much a step counts;
loss_unit = "nats per image" and unit = "images", what loss and steps are counted in"""

_NEEDED = ("batch", "validation", "loss")


@final
@dataclass(frozen=True, eq=False)
class FunctionTask(Task):
    """The functions `batch(step, seed)`, `validation()` and `loss(model, batch)` found under these names.

    `outputs(model, batch)`, `metrics(model, batch)`, `inputs(batch)`, the number `step_tokens` and the words
    `loss_unit` and `unit` may be there too. `name` is where they are from, `code` the digest of their source.
    Raises RequestError, with a skeleton to start from, for what is missing.
    """

    found: Mapping[str, Any]
    name: str
    code: str

    def __post_init__(self) -> None:
        missing = [name for name in _NEEDED if not callable(self.found.get(name))]
        if missing:
            raise RequestError(
                f"the task defines no {' and no '.join(missing)}", where=self.name, advice=SKELETON
            )

    @cached_property
    def digest(self) -> str:
        """Of the source, and of what it hands out: the first batch and all of validation."""
        parts = [_digest(self.batch(0, 0)), *(_digest(batch) for batch in self.validation())]
        return digest({"code": self.code, "batches": parts})

    @cached_property
    def units(self) -> Units:
        """`loss_unit` and `unit` of the functions' module, as far as they are there."""
        return Units(self._word("loss_unit", EXAMPLES.loss), self._word("unit", EXAMPLES.budget))

    @cached_property
    def step_tokens(self) -> int:
        """`step_tokens` of the functions' module, else the examples of the first batch."""
        stated = self.found.get("step_tokens")
        if stated is None:
            return examples(self.batch(0, 0))
        if isinstance(stated, bool) or not isinstance(stated, int) or stated < 1:
            raise RequestError(
                f"step_tokens must be a whole number above zero, got {stated!r}", where=self.name
            )
        return stated

    def batch(self, step: int, seed: int) -> Any:
        """What the function gives."""
        return self._function("batch")(step, seed)

    def validation(self) -> Iterable[Any]:
        """What the function gives."""
        return self._function("validation")()  # type: ignore[no-any-return]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """What the function gives."""
        return self._function("loss")(model, batch)  # type: ignore[no-any-return]

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """What the function gives. Raises RequestError when there is none."""
        if not callable(self.found.get("outputs")):
            return Task.outputs(self, model, batch)
        return self._function("outputs")(model, batch)  # type: ignore[no-any-return]

    def metrics(self, model: nn.Module, batch: Any) -> Mapping[str, float]:
        """What the function gives, as plain numbers; nothing where there is none."""
        if not callable(self.found.get("metrics")):
            return {}
        found = self._function("metrics")(model, batch)
        if not isinstance(found, Mapping):
            raise self._refusal(
                f"metrics(model, batch) gave {type(found).__name__}",
                'return {"accuracy": share}, numbers by name',
            )
        return {str(name): float(value) for name, value in found.items()}

    def inputs(self, batch: Any) -> tuple[Any, ...] | None:
        """What the function gives; None where there is none."""
        if not callable(self.found.get("inputs")):
            return None
        found = self._function("inputs")(batch)
        if not isinstance(found, tuple):
            raise self._refusal(
                f"inputs(batch) gave {type(found).__name__}", "return a tuple: return (images,)"
            )
        return found

    def check(self, model: nn.Module) -> None:
        """Batches are functions of step and seed, validation is the same twice, the loss is a scalar."""
        first = self.batch(0, 0)
        if not same(first, self.batch(0, 0)):
            raise self._refusal(
                "batch(0, 0) gave two different batches",
                "make it a function of step and seed: torch.Generator().manual_seed(hash((step, seed)))",
            )
        measured = list(self.validation())
        if not measured:
            raise self._refusal("validation() has no batch", "give at least one, or the result is no number")
        if not same(measured, list(self.validation())):
            raise self._refusal("validation() gave different batches twice", "return the same ones each time")
        self._check_loss(model, first)
        self._check_loss(model, measured[0])  # else a mistake here shows when all is trained

    def _check_loss(self, model: nn.Module, batch: Any) -> None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with torch.enable_grad():
            loss = self.loss(model, moved(batch, device))
        if not isinstance(loss, Tensor) or loss.dim():
            told = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise self._refusal(
                f"loss(model, batch) gave {told}", "return a tensor of one number: the mean over the examples"
            )
        if not loss.requires_grad:
            raise self._refusal(
                "loss(model, batch) has no gradient", "compute it from what model(...) gives, without no_grad"
            )

    def _word(self, name: str, default: str) -> str:
        found = self.found.get(name, default)
        if not isinstance(found, str):
            raise self._refusal(f"{name} must be words, got {found!r}", f'write {name} = "..."')
        return found

    def _function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = self.found[name]
        return function

    def _refusal(self, message: str, advice: str) -> RequestError:
        return RequestError(message, where=self.name, advice=advice)


def _digest(batch: Any) -> str:
    parts = []
    for tensor in tensors(batch):
        content = tensor.detach().cpu().contiguous()
        parts += [f"{content.dtype} {list(content.shape)}".encode()]
        parts += [content.reshape(-1).view(torch.uint8).numpy().tobytes()]
    return digest_bytes(*parts)
