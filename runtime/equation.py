"""Equations of `torch.einsum` between two operands: what is summed over, and what gives the result's
features."""

from __future__ import annotations

from dataclasses import dataclass

_REST = "."
"""What stands for an ellipsis."""


@dataclass(frozen=True)
class Equation:
    """The letters of two operands and of the result; an ellipsis is one dot."""

    operands: tuple[str, str]
    result: str

    def summed(self, operand: int, rank: int) -> tuple[int, ...]:
        """The dimensions of an operand with `rank` dimensions that are not in the result."""
        letters = self.operands[operand]
        if _REST in letters:
            letters = letters.replace(_REST, _REST * (rank - len(letters) + 1))
        return tuple(i for i, letter in enumerate(letters) if letter not in self.result)

    def channel(self, operand: int) -> int | None:
        """The last dimension, from the end, of an operand that is summed over with the other's; None when
        there is none or it cannot be counted."""
        mine, other = self.operands[operand], self.operands[1 - operand]
        return _last(mine, {c for c in mine if c in other and c not in self.result})

    def features(self, operand: int) -> int | None:
        """The last dimension of the result, from the end, that comes from an operand alone; the last of all
        when there is none."""
        other = self.operands[1 - operand]
        own = {c for c in self.operands[operand] if c in self.result and c not in other}
        return _last(self.result, own) if own else -1


def _last(letters: str, wanted: set[str]) -> int | None:
    for position, letter in enumerate(reversed(letters)):
        if letter == _REST:
            return None
        if letter in wanted:
            return -1 - position
    return None


def equation_of(text: object) -> Equation | None:
    """An equation as it is written; None for anything but a product of two operands without diagonals."""
    if not isinstance(text, str):
        return None
    terms, arrow, result = text.replace(" ", "").replace("...", _REST).partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or any(len(set(term)) < len(term) for term in operands):
        return None
    if not arrow:  # what occurs once, sorted, after the ellipsis
        result = "".join(sorted(c for c in set(terms) - {","} if terms.count(c) == 1 or c == _REST))
    return Equation((operands[0], operands[1]), result)
