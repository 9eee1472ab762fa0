"""Simulated training runs with planted parameters, for tests of laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rhoc.runtime.laws.runs import Runs

TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
RHO = {"dense": 1.0, "int4": 0.85, "int2": 0.45}
GMSE = {"dense": 0.0, "int1": 0.36338, "int2": 0.118846, "int3": 0.0374397, "int4": 0.0115429}


def simulated(
    seed: int,
    *,
    truth: dict[str, float] = TRUTH,
    rho: dict[str, float] = RHO,
    sizes: tuple[float, ...] = (3e7, 1e8, 3e8, 1e9),
    ratios: tuple[float, ...] = (10.0, 30.0, 90.0),
    noise: float = 0.002,
) -> Runs:
    """Runs of every representation at every size and D/N, with log-normal noise."""
    random = np.random.default_rng(seed)
    cells = [(n, n * ratio, name) for n in sizes for ratio in ratios for name in rho]
    params, tokens = np.array([c[0] for c in cells]), np.array([c[1] for c in cells])
    multiplier = np.array([rho[c[2]] for c in cells])
    size = truth["A"] * (params * multiplier) ** -truth["alpha"]
    loss = truth["E"] + size + truth["B"] * tokens ** -truth["beta"]
    noisy = loss * np.exp(random.normal(0.0, noise, len(cells)))
    return Runs(params, tokens, noisy, tuple(c[2] for c in cells), data="simulated runs")


def with_errors(seed: int, *, slope: float = 0.41, curvature: float = 1.39, noise: float = 0.002) -> Runs:
    """Runs whose multipliers follow the representation law, inputs included."""
    single = {
        n: 1.0 if g == 0 else np.tanh(slope * -np.log(g) / np.log(4)) ** curvature for n, g in GMSE.items()
    }
    rho = {**single, "int2-a2": single["int2"] ** 2, "int4-a4": single["int4"] ** 2}
    runs = simulated(seed, rho=rho, noise=noise, ratios=(10.0, 90.0))
    columns = {
        "gmse_weight": tuple(repr(GMSE[name.split("-")[0]]) for name in runs.representation),
        "gmse_input": tuple(repr(GMSE[n.split("-")[0]]) if "-a" in n else "" for n in runs.representation),
    }
    return replace(runs, columns=columns)


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Written apart from the code under test."""
    size = np.abs(residual)
    return np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
