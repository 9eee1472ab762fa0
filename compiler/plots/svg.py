"""A matplotlib figure as inline SVG: deterministic, self-contained, in the colours of the page around it."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure, FigureBase

from .style import INK, theme

Draw = Callable[[FigureBase], None]

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(draw: Draw, *, ident: str, title: str, width: float = 6.8, height: float = 4.2) -> str:
    """Draw on a new figure of `width` by `height` inches and return an `<svg>` element for an HTML page.

    Equal drawings give equal bytes. Ids start with `ident`, so that figures on one page do not clash; `title`
    is what a screen reader says. Text stays text; INK becomes `currentColor`; nothing refers outside.
    """
    with theme(), warnings.catch_warnings():
        # only measures text: the reader's fonts draw it, and they may well have the glyph
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata=_NO_METADATA)
    return _inline(ET.fromstring(written.getvalue()), ident, title)


def _inline(root: ET.Element, ident: str, title: str) -> str:
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): _coloured(value) for name, value in element.attrib.items()}
        element.text = element.text if element.tag == "text" or (element.text or "").strip() else None
        element.tail = None
    used = {name for element in root.iter() for name in _references(element)}
    for element in root.iter():
        _rename(element, ident, used)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in {"metadata", "style"}]:
            parent.remove(child)  # the style rule would reach the whole page; report.css has it for figures
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title}
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _local(name: str) -> str:
    """A name without its XML namespace: HTML knows what an inline SVG is."""
    return name.rpartition("}")[2]


def _coloured(value: str) -> str:
    # the reader's own sans-serif instead of the font that text was measured with
    value = value.replace("'DejaVu Sans', sans-serif", "sans-serif").replace(INK, "currentColor")
    # the one colour too dark for a dark page, which may say `--blue` to lighten it
    return value.replace("#0072b2", "var(--blue, #0072b2)")


def _references(element: ET.Element) -> list[str]:
    found = [name for value in element.attrib.values() for name in _REFERENCE.findall(value)]
    target = element.get("href", "")
    return [*found, target[1:]] if target.startswith("#") else found


def _rename(element: ET.Element, ident: str, used: set[str]) -> None:
    """Prefix ids that something refers to, and drop the others."""
    attributes: dict[str, Any] = element.attrib
    own = attributes.pop("id", None)
    if own in used:
        attributes["id"] = f"{ident}-{own}"
    for name, value in attributes.items():
        attributes[name] = _REFERENCE.sub(rf"url(#{ident}-\1)", value)
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{ident}-{attributes['href'][1:]}"
