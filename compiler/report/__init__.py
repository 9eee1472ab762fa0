"""The report: a self-contained HTML page about a sweep, its law and its predictions, and its tables."""

from __future__ import annotations

from ..plots.data import Factor, FormatRow, PredictionRow, RunRow
from .data import ReportData
from .page import render_report, write_report
from .tables import Column, Table, tables
from .words import answer, verdict

__all__ = [
    "Column",
    "Factor",
    "FormatRow",
    "PredictionRow",
    "ReportData",
    "RunRow",
    "Table",
    "answer",
    "render_report",
    "tables",
    "verdict",
    "write_report",
]
