"""Figures: for each one a function to plain data and a function that draws that data on given axes.

The data functions are what tests compare. The drawing functions take axes, label them with units and return
nothing, so that the same figure serves the report, a notebook and a paper. Colours are those of Okabe and Ito
(told apart with every common form of colour blindness), and markers differ too, for print.
"""

from __future__ import annotations

from .agreement import AgreementPoint, agreement, draw_agreement
from .capacity import CapacityData, CapacityPoint, capacity_points, draw_capacity, published_rho
from .curves import Curve, CurvePanel, draw_loss_curves, loss_curves
from .data import Factor, FormatRow, PredictionRow, RunRow
from .fitted import FittedLaw
from .residuals import ResidualRow, draw_residuals, residual_rows
from .size import SizePanel, draw_loss_by_size, loss_by_size
from .style import Style, styles

__all__ = [
    "AgreementPoint",
    "CapacityData",
    "CapacityPoint",
    "Curve",
    "CurvePanel",
    "Factor",
    "FittedLaw",
    "FormatRow",
    "PredictionRow",
    "ResidualRow",
    "RunRow",
    "SizePanel",
    "Style",
    "agreement",
    "capacity_points",
    "draw_agreement",
    "draw_capacity",
    "draw_loss_by_size",
    "draw_loss_curves",
    "draw_residuals",
    "loss_by_size",
    "loss_curves",
    "published_rho",
    "residual_rows",
    "styles",
]
