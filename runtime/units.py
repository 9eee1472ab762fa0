"""What the numbers of a run are counted in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """loss: the unit of the loss, '' where nobody says it; budget: what D counts, in the plural."""

    loss: str = "nats per token"
    budget: str = "tokens"

    @property
    def loss_in_brackets(self) -> str:
        """To stand behind the word on an axis: ` (nats per token)`, or nothing."""
        return f" ({self.loss})" if self.loss else ""

    @property
    def loss_after_comma(self) -> str:
        """To stand behind the word in a heading: `, nats per token`, or nothing."""
        return f", {self.loss}" if self.loss else ""


TEXT = Units()
"""Of next-token prediction."""

EXAMPLES = Units("", "examples")
"""Of a task that does not say."""
