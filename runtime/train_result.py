"""What a finished run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """`loss` is the validation loss (of language models in nats per token), `params` N without embeddings;
    `final_params` of them are not zero in the end, `average_params` were not in the mean over all steps.

    `tokens` are those of all steps; of tasks with batches of their own, what these count. `train_curve` and
    `eval_curve` are (step, tokens, loss); a training point is the mean since the last one. `seconds` is time
    spent training, summed over interruptions, without what a kill threw away. `skipped` counts steps that
    were not taken because loss or gradient were not finite. `oscillation` is the share of weights on a grid
    whose code turns back in more than 0.5 % of steps, by a moving average; None when it was not asked for.
    """

    loss: float
    params: int
    final_params: int
    average_params: float
    tokens: int
    steps: int
    seconds: float
    tokens_per_second: float
    learning_rate: float
    train_curve: tuple[tuple[int, int, float], ...]
    eval_curve: tuple[tuple[int, int, float], ...]
    skipped: int = 0
    oscillation: float | None = None

    def columns(self) -> dict[str, float]:
        """The numbers that laws name."""
        return {"final_params": self.final_params, "average_params": self.average_params}

    def to_document(self) -> dict[str, Any]:
        """Plain JSON, every field."""
        return asdict(self)
