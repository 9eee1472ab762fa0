"""What a person probably meant: the nearest of the known names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MANY = 24  # names that a message lists
_LONGEST = 64  # comparing texts takes time in the product of their lengths


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`, whatever its case and its dashes; None when none is like it."""
    spelled = {_plain(name): name for name in known}
    if len(word) > _LONGEST:
        return None
    found = get_close_matches(_plain(word), list(spelled), n=1, cutoff=0.6)
    return spelled[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], also: str = "") -> str:
    """`did you mean 'x'? (known: x, y)`, or the known names alone. `also` takes the place of the list,
    as it does where there are too many names to list."""
    names = list(known)
    guess = nearest(word, names)
    listed = f"known: {', '.join(names)}"
    if len(names) > _MANY:
        return f"did you mean {guess!r}? ({also})" if guess else also or f"{len(names)} names are known"
    if guess:
        return f"did you mean {guess!r}? ({also or listed})"
    return f"{listed} ({also})" if also else listed


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")
