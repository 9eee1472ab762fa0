"""Schedules of sparsity: Chinchilla in the average of the parameter count over training."""

from __future__ import annotations

from ..base import Column, Law
from .chinchilla import ALPHA, BETA, A, B, E

AVERAGE_PARAMETERS = Law(
    name="average-parameters",
    formula="L = E + A/average_params^alpha + B/D^beta",
    source="Jin et al., The Journey Matters: Average Parameter Count over Pre-training, arXiv 2501.12486",
    parameters=(E, A, ALPHA, B, BETA),
    columns=(Column("average_params", None, "parameters that are not zero, averaged over training"),),
    unit_of_params="parameters that are not zero, averaged over training",
)
