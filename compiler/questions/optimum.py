"""The best size under a budget: N and D that give the least loss, for every draw of a fit at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RequestError
from ...runtime.laws.base import Features
from ...runtime.laws.multiplier import Multiplier
from ...runtime.laws.runs import Array
from ..query import Format
from .contender import WIDE, Contender
from .cost_model import CostModel
from .voice import Voice

_CELLS = 65  # where the minimum is looked for, evenly in log N
_HALVINGS = 48
_STEP = 3e-4  # of the slope, in log N: its own error moves the minimum by 1e-8
_LEAST = 1.0  # parameter, and token


@dataclass(frozen=True)
class Budget:
    """What limits a training run. None: no such limit. Numbers, or arrays [rows, questions] of them.

    flops: of training and of serving, in 16-bit FLOPs; nbytes: of the stored weights; tokens: that there are
    to train on; served: tokens that the trained model will serve; params: N, where it is given.
    """

    flops: float | Array | None = None
    nbytes: float | Array | None = None
    tokens: float | Array | None = None
    served: float | Array = 0.0
    params: float | Array | None = None

    def check(self) -> None:
        """Raises RequestError where nothing limits the size or the tokens, or a limit is not positive."""
        for name in ("flops", "nbytes", "tokens", "params"):
            value = getattr(self, name)
            if value is not None and not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
                label = "bytes" if name == "nbytes" else name
                raise RequestError(f"{label} is {value}, not a positive finite number", advice="write 1e21")
        if not np.all(np.isfinite(self.served) & (np.asarray(self.served) >= 0)):
            raise RequestError(
                f"served tokens are {self.served}, not a number from 0 up", advice="write 1e12"
            )
        if self.flops is None and self.tokens is None:
            raise RequestError("nothing limits the training tokens", advice="give --flops, or --tokens")
        if self.flops is None and self.nbytes is None and self.params is None:
            raise RequestError("nothing limits the size", advice="give --flops, --bytes or --params")


@dataclass(frozen=True)
class Optimum:
    """N, D and loss, each [rows, questions]; `bound` says whether N ends at what memory holds."""

    params: Array
    tokens: Array
    loss: Array
    bound: NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A format under a voice and a cost model; features: the columns of the voice's law that are given."""

    format: Contender
    multiplier: Multiplier
    voice: Voice
    cost: CostModel
    features: Features = field(default_factory=dict)

    def optimum(self, budget: Budget) -> Optimum:
        """The best N and D in a budget, in every row.

        The loss is taken to have one minimum in log N, which all laws here have: more parameters help, and
        leave less for tokens.
        Raises RequestError for a memory limit on a format of unknown bits.
        """
        rows = np.zeros((self.voice.rows, 1))
        budget = replace(budget, **{name: value + rows for name, value in _limits(budget).items()})
        ceiling = self._ceiling(budget)

        def losses(log_params: Array) -> Array:
            params = np.exp(log_params)
            return self._losses(params, self._tokens(params, budget))

        if budget.params is not None:
            params = np.asarray(budget.params)
        else:
            high = np.log(np.minimum(ceiling, self._affordable(budget)))
            params = np.exp(least(losses, np.full_like(high, np.log(_LEAST)), high))
        tokens = self._fewer(params, self._tokens(params, budget))
        found = self._losses(params, tokens)
        able = (tokens > 0) & (params <= ceiling * (1 + 1e-9))
        return Optimum(params, tokens, np.where(able, found, np.inf), params > ceiling * (1 - 1e-6))

    def _losses(self, params: Array, tokens: Array) -> Array:
        """Losses; infinite where no token is left."""
        able = tokens > 0
        found = self.voice.losses(params, np.where(able, tokens, 1.0), self.multiplier, self.features)
        return np.where(able, found, np.inf)

    def _fewer(self, params: Array, tokens: Array) -> Array:
        """Tokens that a given model is best trained on: where more of them hurt it, as laws have it whose
        error grows with tokens, fewer than there are."""
        most = np.log(np.maximum(tokens, _LEAST))
        hurt = self._losses(params, tokens * (1 - _STEP)) < self._losses(params, tokens)
        if not hurt.any():
            return tokens
        best = least(lambda log: self._losses(params, np.exp(log)), np.full_like(most, np.log(_LEAST)), most)
        return np.where(hurt, np.exp(best), tokens)

    def _tokens(self, params: Array, budget: Budget) -> Array:
        """Tokens that a model of N parameters can be trained on; not positive when it is too expensive."""
        limit = np.inf if budget.tokens is None else budget.tokens
        if budget.flops is None:
            return np.broadcast_to(limit, params.shape)
        spent = self.cost.served(self.format) * budget.served
        return np.minimum(limit, (budget.flops / params - spent) / self.cost.training(self.format))

    def _affordable(self, budget: Budget) -> Array:
        """The size at which one token can be trained on."""
        if budget.flops is None:
            return np.full((self.voice.rows, 1), np.inf)
        least_of_all = (
            self.cost.training(self.format) * _LEAST + self.cost.served(self.format) * budget.served
        )
        return np.asarray(budget.flops / least_of_all)

    def _ceiling(self, budget: Budget) -> Array:
        """The most parameters that memory holds."""
        if budget.nbytes is None:
            return np.full((self.voice.rows, 1), np.inf)
        if self.format.bits is None:
            raise RequestError(
                f"the stored bits of {self.format.name!r} are not known",
                advice=f"say which spec it is: {self.format.name}=SPEC",
            )
        return np.asarray(8 * np.asarray(budget.nbytes) / self.format.bits)

    @property
    def nbytes(self) -> float | None:
        """Stored bytes of a parameter; None where its bits are not known."""
        return None if self.format.bits is None else self.format.bits / 8

    @property
    def training_time(self) -> float:
        """Of a parameter and token, as a share of the dense one's."""
        return self.cost.training(self.format) / self.cost.training(_DENSE)


def least(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where a function of one minimum is least between two ends, element by element.

    Looked for on a grid, then by halving on the sign of the slope: 1e-7 in the argument, where comparing
    values would stop at the square root of their rounding.
    """
    with np.errstate(invalid="ignore"):
        shares = np.linspace(0.0, 1.0, _CELLS)
        values = np.stack([function(low + (high - low) * share) for share in shares])
        best = np.argmin(np.where(np.isnan(values), np.inf, values), axis=0)
        left = low + (high - low) * shares[np.maximum(best - 1, 0)]
        right = low + (high - low) * shares[np.minimum(best + 1, _CELLS - 1)]
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            rising = ~(function(middle + _STEP) < function(middle - _STEP))
            left, right = np.where(rising, left, middle), np.where(rising, middle, right)
    return np.asarray((left + right) / 2)


def _limits(budget: Budget) -> dict[str, Array]:
    found = {name: getattr(budget, name) for name in ("flops", "nbytes", "tokens", "served", "params")}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


_DENSE = Contender("dense", Format("dense"), WIDE)
