"""What a reader of a fit has to know of its runs: those that diverged, and those that are there twice."""

from __future__ import annotations

from .runs import Runs

_NAMED = 3  # of a kind, at most


def oddities(runs: Runs) -> list[str]:
    """In words; empty for ordinary runs."""
    found = []
    if runs.left_out:
        count = len(runs.left_out)
        found.append(f"{count} diverged run{'s' * (count > 1)} left out: {_some(runs.left_out)}")
    twice = duplicates(runs)
    if twice:
        told = _some(tuple(f"{again} like {first}" for first, again in twice))
        found.append(f"runs that are there twice, which makes intervals too narrow: {told}")
    return found


def duplicates(runs: Runs) -> list[tuple[str, str]]:
    """Addresses of runs equal to an earlier one in every column that the law may read, as (earlier, later).

    Another run of the same N and D with another loss is no duplicate but a rerun, and welcome.
    """
    first: dict[tuple[object, ...], str] = {}
    found = []
    for i, address in enumerate(runs.addresses):
        cells = tuple(column[i] for column in runs.columns.values())
        key = (runs.params[i], runs.tokens[i], runs.loss[i], runs.representation[i], *cells)
        if key in first:
            found.append((first[key], address))
        first.setdefault(key, address)
    return found


def _some(words: tuple[str, ...]) -> str:
    rest = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
