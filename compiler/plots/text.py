"""Numbers and names as people read them."""

from __future__ import annotations

import math
import unicodedata

from .data import Interval

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "nu": "ν", "rho": "ρ"}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def greek(name: str) -> str:
    """A parameter by its Greek letter where it has one, with its entry: `ρ[int4]`."""
    head, bracket, rest = name.partition("[")
    return GREEK.get(head, head) + bracket + rest


def power_of_ten(value: float) -> str:
    """A large or small number for an axis: 10²⁰, 3·10¹⁹."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digit, raised = value / 10.0**exponent, f"10{str(exponent).translate(_RAISED)}"
    return raised if abs(digit - 1) < 1e-6 else f"{digit:.3g}·{raised}"


def count(value: float) -> str:
    """A count with separators: 30,720."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """A count for an axis: 8k, 1.2M, 3B."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * (1 - 1e-9):
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def significant(value: float | None, digits: int = 4) -> str:
    """A number with some significant digits; nothing for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    text = f"{value:#.{digits}g}" if 1e-4 <= abs(value) < 10**digits else f"{value:.{digits}g}"
    return text.rstrip(".").replace("-", "−") if "e" not in text else text


def decimals(value: float | None, places: int) -> str:
    """A number with a fixed number of decimals; nothing for None."""
    if value is None:
        return ""
    return f"{value:.{places}f}".replace("-", "−") if math.isfinite(value) else significant(value)


def interval(ends: Interval | None, places: int = 3) -> str:
    """`low to high` with a fixed number of decimals; nothing for None."""
    return "" if ends is None else f"{decimals(ends[0], places)} to {decimals(ends[1], places)}"


def clean(text: str) -> str:
    """Text that every document can hold: what HTML and XML forbid becomes the replacement character."""
    return "".join("\ufffd" if _forbidden(c) else c for c in text)


def label(name: str, longest: int = 26) -> str:
    """A user's name as a figure shows it: one line, shortened, never empty.

    matplotlib hides labels that begin with an underscore; a space before it keeps them.
    """
    text = " ".join(clean(name).split()) or "(no name)"
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def _forbidden(character: str) -> bool:
    noncharacter = ord(character) & 0xFFFE == 0xFFFE
    return character not in "\n\t" and (noncharacter or unicodedata.category(character) in {"Cc", "Cs"})
