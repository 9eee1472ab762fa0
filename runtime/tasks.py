"""What training a model means: how a batch is put to it, and what its loss is.

The seam for tasks other than next-token prediction: one class each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .corpus import Corpus
from .errors import RequestError


class Task(ABC):
    """What a batch means: how a model is asked, and what its loss is."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar with gradient."""

    @abstractmethod
    def check(self, model: nn.Module, corpus: Corpus, batch: Tensor) -> None:
        """Raises RequestError when the model cannot take this corpus, before anything is spent."""


@final
class NextToken(Task):
    """Predict each token from those before it: cross-entropy in nats per token of windows [B, T + 1]."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean over B * T targets."""
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def check(self, model: nn.Module, corpus: Corpus, batch: Tensor) -> None:
        """The model must answer [B, T, V] with V at least the vocabulary of the corpus."""
        size = corpus.vocabulary
        probe = torch.full_like(batch[:, :-1], size - 1)
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
