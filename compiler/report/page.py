"""The page: sections in a self-contained HTML document without scripts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ...runtime.errors import RequestError
from .data import ReportData
from .markup import Markup, element, join
from .sections import SECTIONS

# The browser itself holds the page to what it promises: nothing is loaded, nothing runs.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_report(data: ReportData) -> str:
    """The report as one HTML document. Equal data give equal text."""
    style = Markup((files(__package__) / "report.css").read_text(encoding="utf-8"))
    title = data.question.strip() or "What is each format worth?"
    head = join(
        [
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="color-scheme" content="light dark">'),
            element("title", f"{title} · rhoc report"),
            element("style", style),
        ],
        "\n",
    )
    shown = (section(data) for section in SECTIONS)
    body = element("main", join((part for part in shown if part is not None), "\n"))
    page = element("html", element("head", head), "\n", element("body", body), attributes={"lang": "en"})
    return f"<!DOCTYPE html>\n{page}\n"


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the report to `path` and return it.

    Raises RequestError when the file cannot be written.
    """
    place = Path(path)
    page = render_report(data)
    try:
        place.write_bytes(page.encode("utf-8"))
    except OSError as error:
        raise RequestError(
            f"the report cannot be written here ({error.strerror or error})",
            where=str(path),
            advice="name a file in an existing folder that you may write to",
        ) from error
    return place
