"""The laws that ship, one file each."""

from __future__ import annotations

from ..base import Law
from .average_parameters import AVERAGE_PARAMETERS
from .chinchilla import CHINCHILLA
from .data_constrained import DATA_CONSTRAINED
from .decoupled import DECOUPLED
from .floating_point import FLOATING_POINT
from .gamma import GAMMA
from .kaplan import KAPLAN
from .precision import PRECISION, PRECISION_PTQ
from .qat_error import QAT_ERROR
from .representation import REPRESENTATION, REPRESENTATION_CEILING, REPRESENTATION_FAMILIES
from .sparse import SPARSE

LAWS: tuple[Law, ...] = (
    CHINCHILLA,
    KAPLAN,
    DECOUPLED,
    REPRESENTATION,
    REPRESENTATION_CEILING,
    REPRESENTATION_FAMILIES,
    SPARSE,
    PRECISION,
    PRECISION_PTQ,
    GAMMA,
    QAT_ERROR,
    FLOATING_POINT,
    AVERAGE_PARAMETERS,
    DATA_CONSTRAINED,
)

__all__ = ["LAWS"]
