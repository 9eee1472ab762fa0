"""What training a model means: what it is trained and measured on, and what its loss is.

The seam for tasks other than next-token prediction: one class each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import examples
from .corpus import Corpus
from .digest import digest
from .errors import RequestError
from .units import EXAMPLES, TEXT, Units


class Task(ABC):
    """Batches, and the loss of a model on one. A batch is a tensor, or any structure of tensors."""

    @property
    def units(self) -> Units:
        """What the loss is in, and what `step_tokens` counts."""
        return EXAMPLES

    @abstractmethod
    def batch(self, step: int, seed: int) -> Any:
        """What the 0-based `step` is trained on: a function of step and seed alone, so that resuming needs no
        record of where a run was."""

    @abstractmethod
    def validation(self) -> Iterable[Any]:
        """What the result is measured on, batch by batch: the same every time."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss over the examples of a batch, a scalar with gradient."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """The address of the task: 16 hex digits of everything that determines its numbers."""

    @cached_property
    def step_tokens(self) -> int:
        """What one step counts towards the budget: by default the examples of a batch."""
        return examples(self.batch(0, 0))

    def check(self, model: nn.Module) -> None:
        """Raises RequestError when the model cannot be trained at this, before anything is spent."""
        return

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """The logits of a batch, `[..., classes]`, as a teacher's are compared with.

        Raises RequestError where a task does not say what they are.
        """
        raise RequestError(
            "this task does not say what the model's outputs are, so a teacher's cannot be compared",
            where="teacher",
            advice="define outputs(model, batch), logits with the classes last",
        )

    def metrics(self, model: nn.Module, batch: Any) -> Mapping[str, float]:
        """What finished models are measured by beside the loss, by name: means over a batch's examples."""
        return {}

    def inputs(self, batch: Any) -> tuple[Any, ...] | None:
        """What the model is called with for a batch, for passes that look at activations; None: not told."""
        return None

    def loss_and_outputs(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Both, by asking the model twice; a task that can does with once."""
        return self.loss(model, batch), self.outputs(model, batch)


@final
@dataclass(frozen=True, eq=False)
class NextToken(Task):
    """Predict each token from those before it: cross-entropy in nats per token of windows [B, T + 1].

    `eval_tokens` bounds the validation targets. Raises RequestError when the corpus is too short.
    """

    corpus: Corpus
    context: int
    batch_size: int
    eval_tokens: int

    def __post_init__(self) -> None:
        self.corpus.check(self.context)

    @property
    def units(self) -> Units:
        """Nats per token, and tokens."""
        return TEXT

    @property
    def digest(self) -> str:
        sizes = [self.context, self.batch_size, self.eval_tokens]
        return digest({"task": "next token", "corpus": self.corpus.digest, "sizes": sizes})

    @cached_property
    def step_tokens(self) -> int:
        """Targets of one step."""
        return self.batch_size * self.context

    def batch(self, step: int, seed: int) -> Tensor:
        """Windows at random places: int64 [batch_size, context + 1]."""
        return self.corpus.batch(step, batch_size=self.batch_size, context=self.context, seed=seed)

    @cached_property
    def windows(self) -> Tensor:
        """The validation windows: int64 [n, context + 1]."""
        return self.corpus.evaluation(tokens=self.eval_tokens, context=self.context)

    def validation(self) -> Iterable[Tensor]:
        """The validation windows, `batch_size` at a time."""
        return torch.split(self.windows, self.batch_size)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean over B * T targets."""
        return self._loss_of(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Logits of every next token: [B, T, vocabulary]."""
        logits: Tensor = model(batch[:, :-1])
        return logits

    def inputs(self, batch: Tensor) -> tuple[Tensor]:
        """The tokens but the last ones."""
        return (batch[:, :-1],)

    def loss_and_outputs(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Both, by asking once."""
        logits = self.outputs(model, batch)
        return self._loss_of(logits, batch), logits

    def check(self, model: nn.Module) -> None:
        """The model must answer [B, T, V] with V at least the vocabulary of the corpus."""
        size = self.corpus.vocabulary
        device = next((parameter.device for parameter in model.parameters()), None)
        probe = torch.full((1, self.context), size - 1, device=device)
        asked = list(probe.shape)
        try:
            answer = list(model(probe).shape)
        except (IndexError, RuntimeError) as error:
            raise RequestError(
                f"the model does not take int64 tokens {asked} with values below {size}: {error}",
                where="model",
                advice=f"build it with a vocabulary of {size} and a context of {asked[1]} or more",
            ) from error
        if answer[:-1] != asked or answer[-1] < size:
            raise RequestError(
                f"the model answers {answer} to tokens {asked}",
                where="model",
                advice=f"it must answer logits [*tokens, vocabulary], with a vocabulary of {size} or more",
            )

    @staticmethod
    def _loss_of(logits: Tensor, batch: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
