"""HTML from parts. Text is escaped unless it is markup already, so no name from a file can become a tag."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..plots.text import clean
from .tables import Table

_NONE: Mapping[str, str] = MappingProxyType({})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Text as HTML that shows it; markup as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text)))


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Parts after one another, each escaped unless markup."""
    return Markup(between.join(escape(part) for part in parts))


def element(tag: str, *children: str, attributes: Mapping[str, str] = _NONE) -> Markup:
    """An element with attributes and children, all escaped unless markup."""
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def words(text: str) -> Markup:
    """A paragraph's text, in which `code` between back-quotes is set as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return join(element("code", part) if place % 2 else part for place, part in enumerate(parts))


def paragraph(text: str) -> Markup:
    """A paragraph, with `code`."""
    return element("p", words(text))


def table(rows: Table, *, code: frozenset[int] = frozenset()) -> Markup:
    """A table. The first column heads its row; the columns numbered in `code` are set as code."""
    numeric = [rows.is_numeric(place) for place in range(len(rows.columns))]
    head = join(
        _heading(column.heading, column.unit, right)
        for column, right in zip(rows.columns, numeric, strict=True)
    )
    body = (
        element("tr", *(_cell(text, place, numeric[place], place in code) for place, text in enumerate(row)))
        for row in rows.text_rows
    )
    inner = element("table", element("thead", element("tr", head)), element("tbody", join(body, "\n")))
    return wide(inner, rows.title)


def wide(content: Markup, title: str) -> Markup:
    """Content that scrolls sideways, by keyboard too, where the window is narrower."""
    named = {"class": "wide", "role": "region", "tabindex": "0", "aria-label": title}
    return element("div", content, attributes=named)


def _heading(heading: str, unit: str, right: bool) -> Markup:
    shown = (
        join([heading, Markup("<br>"), element("span", unit, attributes={"class": "unit"})])
        if unit
        else heading
    )
    return element("th", shown, attributes={"scope": "col", **({"class": "number"} if right else {})})


def _cell(text: str, place: int, right: bool, code: bool) -> Markup:
    shown = element("code", text) if code and text else text
    if place == 0:
        return element("th", shown, attributes={"scope": "row"})
    return element("td", shown, attributes={"class": "number"} if right else _NONE)
