"""The functions of formulas, on numbers, arrays and jets alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import RequestError
from .jet import Jet, where

_LEAST = 1e-12  # a logarithm of anything smaller is taken here, with no slope


def _elementwise(
    plain: Callable[[Any], Any], slope: Callable[[Any], Any], curve: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """A function of one argument with its first and second derivative."""

    def apply(x: Any) -> Any:
        return x.chained(plain(x.value), slope(x.value), curve(x.value)) if isinstance(x, Jet) else plain(x)

    return apply


def _positive(x: Any) -> Any:
    return np.maximum(x, _LEAST)


log = _elementwise(
    lambda x: np.log(_positive(x)),
    lambda x: np.where(x > _LEAST, 1 / _positive(x), 0.0),
    lambda x: np.where(x > _LEAST, -1 / _positive(x) ** 2, 0.0),
)
exp = _elementwise(np.exp, np.exp, np.exp)
tanh = _elementwise(np.tanh, lambda x: 1 - np.tanh(x) ** 2, lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2))


def capacity(gmse: Any, slope: Any, curvature: Any, ceiling: Any = 1.0) -> Any:
    """L tanh(F log_{1/4} GMSE)^C (Panferov et al., arXiv 2506.01863, eq. 3), and 1 at GMSE 0: dense.

    Raises RequestError when GMSE is not in [0, 1).
    """
    errors = np.asarray(gmse, dtype=np.float64)
    wrong = ~((errors >= 0) & (errors < 1))
    if wrong.any():
        raise RequestError(
            f"GMSE is {float(errors[wrong].ravel()[0]):g}, and rho is defined for 0 <= GMSE < 1",
            advice="an error of 1 keeps nothing of the weight",
        )
    bits = -np.log(np.where(errors > 0, errors, 0.5)) / np.log(4.0)
    value = ceiling * exp(curvature * log(tanh(slope * bits)))
    return where(errors > 0, value, 1.0)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "log": log,
    "log2": lambda x: log(x) * (1 / np.log(2.0)),
    "log10": lambda x: log(x) * (1 / np.log(10.0)),
    "exp": exp,
    "sqrt": lambda x: x**0.5,
    "tanh": tanh,
    "min": lambda x, y: where(_value(x) <= _value(y), x, y),
    "max": lambda x, y: where(_value(x) >= _value(y), x, y),
    "capacity": capacity,
}


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Jet) else x
