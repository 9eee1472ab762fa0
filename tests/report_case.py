"""A made-up study for the tests of the report: runs from a planted law, a fit document, a reader of HTML."""

from __future__ import annotations

import math
import random
from functools import cache
from html.parser import HTMLParser
from typing import Any

from rhoc.compiler.report import (
    Factor,
    FormatRow,
    PredictionRow,
    ReportData,
    RunRow,
    render_report,
)

E, A, ALPHA, B, BETA = 1.25, 5.2, 0.31, 260.0, 0.47
RHO = {"dense": 1.0, "int2": 0.452, "int3": 0.671, "sparse50": 0.706, "a2": 0.482}
SIZES, TOKENS = (8_192, 20_480, 61_440), (409_600, 819_200, 1_638_400)


def chinchilla(params: float, tokens: float, rho: float) -> float:
    return E + A * (params * rho) ** -ALPHA + B * tokens**-BETA


def curve(loss: float, tokens: int, noise: random.Random) -> tuple[tuple[int, int, float], ...]:
    """A training curve that starts at the loss of guessing a byte and ends near `loss`."""
    steps = 120
    return tuple(
        (
            s,
            tokens * s // steps,
            loss + (math.log(256) - loss) * math.exp(-7 * (s / steps) ** 0.5) + noise.gauss(0, 0.03),
        )
        for s in range(1, steps + 1)
    )


def sweep() -> tuple[RunRow, ...]:
    noise = random.Random(7)
    cells = [(name, n, d) for name in RHO for n in SIZES for d in TOKENS]
    cells.append(("int2-a2", SIZES[-1], TOKENS[-1]))
    rows = []
    for name, n, d in cells:
        loss = chinchilla(n, d, RHO.get(name, 0.24)) * math.exp(noise.gauss(0, 0.003))
        run = f"{noise.getrandbits(64):016x}"
        training = curve(loss, d, noise)
        rows.append(RunRow(run, name, n, d, loss, 0, d / 40_000, training, held_out=name == "int2-a2"))
    return tuple(rows)


def fit() -> dict[str, Any]:
    parameters = {"E": E, "A": A, "alpha": ALPHA, "B": B, "beta": BETA}
    return {
        "law": "decoupled",
        "formula": "L = E + A/(N rho_R)^alpha + B/D^beta",
        "unit_of_params": "non-embedding parameters",
        "parameters": parameters,
        "standard_error": {name: 0.08 * value for name, value in parameters.items()},
        "interval": {name: [0.85 * value, 1.18 * value] for name, value in parameters.items()},
        "objective": 1.234e-4,
        "rms_log_error": 0.00312,
        "n_runs": 45,
        "bic": -512.25,
        "outcome": "converged",
        "message": "the optimum lies below every cell of the profile map; compare laws by bic",
        "source": "Hoffmann et al., with one multiplier per format",
        "data": "45 synthetic runs",
        "rho": {
            name: {
                "value": rho,
                "interval": [rho * 0.94, rho * 1.07] if name != "dense" else [1.0, 1.0],
                "standard_error": rho * 0.03,
            }
            for name, rho in RHO.items()
        },
    }


def formats() -> tuple[FormatRow, ...]:
    had = "hadamard(128) >> quantize(int2, channel, rms)"
    return (
        FormatRow("dense", "the baseline: weights as they are", "dense", 16.0, 0.0, math.inf),
        FormatRow("int2", "weights in 2 bits, rotated", had, 2.0039, 0.118846, 1.5364),
        FormatRow("int3", "weights in 3 bits, rotated", had.replace("2", "3", 1), 3.0039, 0.0374397, 2.3697),
        FormatRow(
            "sparse50", "half the weights of a row, by magnitude", "sparsify(0.5)", 9.0, 0.0713259, 1.9047
        ),
        FormatRow("a2", "inputs in 2 bits, rotated", "dense", 16.0, 0.0, math.inf, gmse_input=0.118846),
        FormatRow(
            "int2-a2", "weights and inputs in 2 bits", had, 2.0039, 0.118846, 1.5364, gmse_input=0.118846
        ),
    )


def prediction(measured: float | None = None) -> PredictionRow:
    rho = RHO["int2"] * RHO["a2"]
    loss = chinchilla(SIZES[-1], TOKENS[-1], rho)
    return PredictionRow(
        representation="int2-a2",
        params=SIZES[-1],
        tokens=TOKENS[-1],
        predicted=loss,
        interval=(loss - 0.031, loss + 0.034),
        measured=measured,
        rho=rho,
        rho_interval=(0.19, 0.25),
        rule="product of int2 and a2",
        factors=(Factor("int2", RHO["int2"], (0.425, 0.484)), Factor("a2", RHO["a2"], (0.453, 0.516))),
    )


def full() -> ReportData:
    runs = sweep()
    return ReportData(
        question="Can the loss of weights and inputs in 2 bits be told from runs of each alone?",
        formats=formats(),
        runs=runs,
        fit=fit(),
        predictions=(prediction(runs[-1].loss),),
        environment={"python": "3.11.7", "torch": "2.13.0+cpu", "machine": {"cores": 2, "device": "cpu"}},
        commands=("rhoc sweep run demo", "rhoc fit --law decoupled", "rhoc report --out report.html"),
        notes=("Inputs are rounded per token.",),
    )


@cache
def page() -> str:
    return render_report(full())


VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed in order, attributes and text kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def visible(text: str) -> str:
    return Reader(text).text
