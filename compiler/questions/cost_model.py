"""What training and serving cost: declarations of how fast products of low-bit numbers are.

Costs are counted in FLOPs of 16-bit products: 2 a parameter and token forward, 4 backward (Kaplan et al.,
arXiv 2001.08361, section 2.1), each divided by the speed of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...runtime.errors import RequestError
from ..documents import read_document
from ..hints import did_you_mean
from .contender import WIDE, Contender

_FORWARD, _BACKWARD = 2.0, 4.0  # FLOPs per parameter and token
_KEYS = frozenset({"name", "summary", "source", "speed", "serving"})


@dataclass(frozen=True)
class CostModel:
    """A declared cost.

    speed: by bits of a product's wider operand, how many times faster than with 16 bits; a width between is
    computed as the next wider one. serving: a served token costs a forward pass ("products"), or reading
    every stored weight ("stored": 2 FLOPs per 16 stored bits).
    """

    name: str
    summary: str
    source: str
    speed: Mapping[int, float]
    serving: Literal["products", "stored"] = "products"

    def training(self, format_: Contender) -> float:
        """16-bit FLOPs of training, per parameter and token: 6 for dense numbers."""
        widths = format_.widths
        backward = self._time(widths.input_gradient) + self._time(widths.weight_gradient)
        return _FORWARD * self._time(widths.forward) + _BACKWARD / 2 * backward

    def served(self, format_: Contender) -> float:
        """16-bit FLOPs of a served token, per parameter: 2 for dense numbers."""
        if self.serving == "products":
            return _FORWARD * self._time(format_.widths.forward)
        return _FORWARD * (format_.bits or WIDE) / WIDE

    def to_document(self) -> dict[str, Any]:
        """As plain JSON."""
        speed = {str(width): factor for width, factor in self.speed.items()}
        return {
            "name": self.name, "summary": self.summary, "source": self.source, "speed": speed,
            "serving": self.serving,
        }  # fmt: skip

    def _time(self, width: int) -> float:
        able = [known for known in self.speed if known >= width]
        return 1.0 / self.speed[min(able)] if able else 1.0


COSTS = (
    CostModel("flops", "every product as fast as with 16 bits", "Kaplan et al., arXiv 2001.08361", {16: 1}),
    CostModel(
        "speed-ups", "8 bits twice as fast as 16, 4 bits four times; sparsity no faster",
        "Quartet, arXiv 2505.14669: FP8 1, FP4 2, training the harmonic mean; 16 bits at half of FP8",
        {16: 1, 8: 2, 4: 4},
    ),
    CostModel(
        "bit-operations", "in proportion to the bits of the wider operand",
        "Kumar et al., arXiv 2411.04330: C = 6/16 N D P", {bits: 16 / bits for bits in range(1, 17)},
    ),
    CostModel(
        "traffic", "training as in flops; a served token reads every stored bit of the weights once",
        "one sequence at a time: generation is bound by memory", {16: 1}, "stored",
    ),
)  # fmt: skip


def cost_model(name: str) -> CostModel:
    """A shipped cost model, or one in a YAML file with `name`, `speed: {"16": 1, "8": 1.8}` and, if need be,
    `summary`, `source` and `serving`.

    Raises RequestError for neither.
    """
    known = {cost.name: cost for cost in COSTS}
    if name in known:
        return known[name]
    if not name.endswith((".yaml", ".yml")):
        raise RequestError(f"no cost model is called {name!r}", advice=did_you_mean(name, known))
    return _read(dict(read_document(Path(name)).data), name)


def _read(document: dict[str, Any], where: str) -> CostModel:
    advice = 'write name: mine and speed: {"16": 1, "8": 1.8}'
    if extra := sorted(set(document) - _KEYS):
        raise RequestError(f"a cost model has no {extra[0]!r}", where=where, advice=advice)
    serving = document.get("serving", "products")
    if serving not in ("products", "stored"):
        raise RequestError(f"serving is {serving!r}", where=where, advice="write products or stored")
    try:
        speed = {int(width): float(factor) for width, factor in document["speed"].items()}
        name = str(document["name"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            f"not a cost model ({type(error).__name__}: {error})", where=where, advice=advice
        ) from error
    if not speed or min(speed) < 1 or min(speed.values()) <= 0:
        raise RequestError("speeds are positive, by widths of at least 1 bit", where=where, advice=advice)
    return CostModel(
        name, str(document.get("summary", "")), str(document.get("source", where)), speed, serving
    )
