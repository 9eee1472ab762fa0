"""rho as a function of Gaussian error, and its inverse scale in bits."""

from __future__ import annotations

import numpy as np

from .base import Number
from .functions import capacity


def effective_bits(gmse: Number) -> Number:
    """log_{1/4} GMSE: the bits at which the Gaussian rate-distortion bound 4^-b has this error."""
    return np.asarray(-np.log(gmse) / np.log(4.0))


def rho_of_gmse(gmse: float, slope: Number, curvature: Number, ceiling: Number = 1.0) -> Number:
    """rho = L tanh(F log_{1/4} GMSE)^C (Panferov et al., arXiv 2506.01863, eq. 3); 1 for GMSE 0, dense.

    Raises RequestError when GMSE is not in [0, 1).
    """
    return np.asarray(capacity(gmse, slope, curvature, ceiling))
