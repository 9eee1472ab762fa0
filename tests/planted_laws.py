"""Designs on which every law is identified, with planted parameters; the losses by plain formulas of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rhoc.runtime.laws.runs import Runs

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Planted:
    """A law by name, its true parameters and multipliers, the loss they give, and the design of the runs."""

    law: str
    truth: Mapping[str, float]
    loss: Callable[[np.ndarray, np.ndarray, Columns, Mapping[str, float]], np.ndarray]
    design: Callable[[], tuple[list[str], dict[str, list[float | str]]]]
    rho: Mapping[str, float] | None = None
    sizes: tuple[float, ...] = (3e7, 1e8, 3e8, 1e9)
    ratios: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0)

    def runs(self, seed: int = 0, noise: float = 1e-3) -> Runs:
        """Every size at every D/N in every representation, with log-normal noise."""
        names, columns = self.design()
        grid = [(n, n * r, i) for n in self.sizes for r in self.ratios for i in range(len(names))]
        params, tokens = (np.array([row[k] for row in grid], dtype=float) for k in (0, 1))
        of = np.array([row[2] for row in grid])
        cells = {name: np.array(values)[of] for name, values in columns.items()}
        cells |= {"representation": np.array(names)[of]}
        loss = self.loss(params, tokens, cells, self.truth)
        loss = loss * np.exp(np.random.default_rng(seed).normal(0, noise, len(loss)))
        text = {
            k: tuple("" if str(v) == "inf" else str(v) for v in values)
            for k, values in cells.items()
            if k != "representation"
        }
        return Runs(params, tokens, loss, tuple(names[i] for i in of), text, data=f"planted {self.law}")


BASE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
RHO = {"dense": 1.0, "int2": 0.45, "int4": 0.85}


def _chinchilla(n: np.ndarray, d: np.ndarray, p: Mapping[str, float]) -> np.ndarray:
    return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]


def _gmse_rho(error: np.ndarray, slope: float, curve: float) -> np.ndarray:
    bits = -np.log(np.where(error > 0, error, 0.5)) / np.log(4)
    return np.where(error > 0, np.tanh(slope * bits) ** curve, 1.0)


def _of(cells: Columns, table: Mapping[str, float], column: str = "representation") -> np.ndarray:
    return np.array([table[str(name)] for name in cells[column]])


def _number(cells: Columns, name: str) -> np.ndarray:
    return cells[name].astype(float)


def _dense() -> tuple[list[str], dict[str, list[float | str]]]:
    return ["dense"], {}


def _gmse() -> tuple[list[str], dict[str, list[float | str]]]:
    weight = [0.0, 0.363, 0.119, 0.0374, 0.0115, 0.0035, 0.119, 0.0374]
    inputs = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0115, 0.119]
    return [f"f{i}" if i else "dense" for i in range(8)], {"gmse_weight": [*weight], "gmse_input": [*inputs]}


def _families() -> tuple[list[str], dict[str, list[float | str]]]:
    weight = [0.0, 0.363, 0.119, 0.0374, 0.0115, 0.0143, 0.0713, 0.2764, 0.5607]
    family = ["scalar"] * 5 + ["sparse"] * 4
    inputs = [0.0] * 9
    names = ["dense", *(f"int{i}" for i in range(1, 5)), *(f"sparse{i}" for i in range(4))]
    more = [0.363, 0.119, 0.0374]
    return [*names, "a1", "a2", "a3"], {
        "gmse_weight": [*weight, 0.0, 0.0, 0.0], "gmse_input": [*inputs, *more], "family_weight": [*family, *["scalar"] * 3]
    }  # fmt: skip


def _bits() -> tuple[list[str], dict[str, list[float | str]]]:
    rows = [(16, 16, 16), (3, 16, 16), (4, 16, 16), (6, 16, 16), (8, 16, 16), (16, 4, 16), (16, 5, 16), (16, 6, 16),
            (16, 8, 16), (16, 16, 3), (16, 16, 4), (16, 16, 5), (16, 16, 6), (4, 6, 16), (6, 4, 4)]  # fmt: skip
    names = ["dense" if row == (16, 16, 16) else "w{}a{}kv{}".format(*row) for row in rows]
    return names, {
        c: [float(row[i]) for row in rows] for i, c in enumerate(("weight_bits", "input_bits", "kv_bits"))
    }


def _bits_rho(c: Columns, p: Mapping[str, float]) -> np.ndarray:
    rho = np.ones(len(c["weight_bits"]))
    for name, column in (("w", "weight_bits"), ("a", "input_bits"), ("kv", "kv_bits")):
        rho = rho * (1 - np.exp(p[f"n_{name}"] - _number(c, column) / p[f"g_{name}"]))
    return rho


def _post() -> tuple[list[str], dict[str, list[float | str]]]:
    names, columns = _bits()
    post = [float("inf")] * len(names) + [3.0, 4.0, 5.0]
    wide = {name: [*values, 16.0, 16.0, 16.0] for name, values in columns.items()}
    return [*names, "post3", "post4", "post5"], {**wide, "post_bits": [*post]}


def _sparsities() -> tuple[list[str], dict[str, list[float | str]]]:
    return ["dense", "s50", "s75", "s875", "s94"], {"sparsity": [0.0, 0.5, 0.75, 0.875, 0.9375]}


def _two_sided() -> tuple[list[str], dict[str, list[float | str]]]:
    forward = ["dense", "dense", "dense", "fp4", "int4", "fp4"]
    return forward, {"backward": ["dense", "fp4", "fp8", "dense", "dense", "fp8"]}


def _groups() -> tuple[list[str], dict[str, list[float | str]]]:
    return ["dense", *["w4"] * 4, *["w4a4"] * 4], {"group_size": [128.0, *[16.0, 32.0, 128.0, 1024.0] * 2]}


def _floats() -> tuple[list[str], dict[str, list[float | str]]]:
    rows = [
        (8, 7, 32),
        (2, 1, 32),
        (2, 1, 512),
        (1, 2, 128),
        (3, 2, 128),
        (2, 3, 128),
        (4, 3, 512),
        (5, 2, 64),
        (1, 1, 128),
    ]
    names = [f"e{e}m{m}b{b}" for e, m, b in rows]
    return names, {
        c: [float(r[i]) for r in rows] for i, c in enumerate(("exponent_bits", "mantissa_bits", "block_size"))
    }


def _averages() -> tuple[list[str], dict[str, list[float | str]]]:
    return ["dense"], {}


def _repeats() -> tuple[list[str], dict[str, list[float | str]]]:
    return ["dense"] * 4, {"unique_tokens": [1e30, 1e9, 3e8, 1e8]}


def _repeated(n: np.ndarray, d: np.ndarray, c: Columns, p: Mapping[str, float]) -> np.ndarray:
    unique = np.minimum(d, _number(c, "unique_tokens"))
    epochs = d / unique - 1
    return _chinchilla(n, unique * (1 + p["R_D"] * (1 - np.exp(-epochs / p["R_D"]))), p)


_GAMMA = {"E": 1.5, "A": 1.5e5, "alpha": 0.59, "B": 5.3e5, "beta": 0.54, "gamma": 0.35}
_PRECISION = BASE | {"g_w": 2.7, "n_w": 0.3, "g_a": 2.2, "n_a": 0.7, "g_kv": 1.0, "n_kv": 1.2}

PLANTED: tuple[Planted, ...] = (
    Planted("chinchilla", BASE, lambda n, d, c, p: _chinchilla(n, d, p), _dense),
    Planted(
        "kaplan", {"A": 4e10, "alpha": 0.076, "B": 1.8e13, "beta": 0.103},
        lambda n, d, c, p: (p["A"] * n ** (-p["alpha"] / p["beta"]) + p["B"] / d) ** p["beta"], _dense,
    ),
    Planted(
        "decoupled", BASE, lambda n, d, c, p: _chinchilla(n * _of(c, RHO), d, p),
        lambda: (list(RHO), {}), RHO,
    ),
    Planted(
        "representation", BASE | {"F": 0.41, "C": 1.39},
        lambda n, d, c, p: _chinchilla(
            n * _gmse_rho(_number(c, "gmse_weight"), p["F"], p["C"]) * _gmse_rho(_number(c, "gmse_input"), p["F"], p["C"]), d, p
        ), _gmse,
    ),
    Planted(
        "representation-ceiling", BASE | {"F": 0.41, "C": 1.39, "L": 0.9},
        lambda n, d, c, p: _chinchilla(
            n * np.prod([
                np.where(_number(c, k) > 0, p["L"], 1.0) * _gmse_rho(_number(c, k), p["F"], p["C"])
                for k in ("gmse_weight", "gmse_input")
            ], axis=0), d, p
        ), _gmse,
    ),
    Planted(
        "representation-families",
        BASE | {"F[scalar]": 0.41, "F[sparse]": 0.28, "C[scalar]": 1.39, "C[sparse]": 0.5, "F_input": 0.5, "C_input": 1.6},
        lambda n, d, c, p: _chinchilla(
            n * _gmse_rho(_number(c, "gmse_input"), p["F_input"], p["C_input"]) * np.where(
                c["family_weight"] == "sparse",
                _gmse_rho(_number(c, "gmse_weight"), p["F[sparse]"], p["C[sparse]"]),
                _gmse_rho(_number(c, "gmse_weight"), p["F[scalar]"], p["C[scalar]"]),
            ), d, p
        ), _families,
    ),
    Planted(
        "sparse", {"a": 120.0, "b": 0.72, "c": 300.0, "alpha": 0.3, "B": 410.0, "beta": 0.28, "E": 1.2},
        lambda n, d, c, p: (p["a"] * (1 - _number(c, "sparsity")) ** p["b"] + p["c"]) * n ** -p["alpha"]
        + p["B"] * d ** -p["beta"] + p["E"], _sparsities,
    ),
    Planted("precision", _PRECISION, lambda n, d, c, p: _chinchilla(n * _bits_rho(c, p), d, p), _bits),
    Planted(
        "precision-ptq", _PRECISION | {"C_T": 0.6, "g_D": 0.5, "g_N": 0.34, "g_post": 0.9},
        lambda n, d, c, p: _chinchilla(n * _bits_rho(c, p), d, p)
        + p["C_T"] * d ** p["g_D"] / n ** p["g_N"] * np.exp(-_number(c, "post_bits") / p["g_post"]), _post,
    ),
    Planted(
        "gamma", _GAMMA | {"rho_D[fp4]": 0.88, "rho_D[fp8]": 0.95},
        lambda n, d, c, p: (
            p["A"] * (n * _of(c, {"dense": 1.0, "fp4": 0.64, "int4": 0.72})) ** -p["alpha"]
            + p["B"] * (d * _of(c, {"dense": 1.0, "fp4": 0.88, "fp8": 0.95}, "backward")) ** -p["beta"]
        ) ** p["gamma"] + p["E"], _two_sided, {"dense": 1.0, "fp4": 0.64, "int4": 0.72},
    ),
    Planted(
        "qat-error", BASE | {"k[w4]": 0.25, "k[w4a4]": 0.4, "g_D": 0.075, "g_G": 0.6, "g_N": 0.22},
        lambda n, d, c, p: _chinchilla(n, d, p)
        + _of(c, {"dense": 0.0, "w4": p["k[w4]"], "w4a4": p["k[w4a4]"]})
        * d ** p["g_D"] * np.log2(_number(c, "group_size")) ** p["g_G"] / n ** p["g_N"], _groups,
    ),
    Planted(
        "floating-point", BASE | {"h": 8e-5, "delta": 3.2, "nu": 2.9},
        lambda n, d, c, p: _chinchilla(n, d, p)
        + p["h"] * d ** p["beta"] * n ** -p["alpha"] * np.log2(_number(c, "block_size"))
        / ((_number(c, "exponent_bits") + 0.5) ** p["delta"] * (_number(c, "mantissa_bits") + 0.5) ** p["nu"]), _floats,
    ),
    Planted("data-constrained", BASE | {"R_D": 15.4}, _repeated, _repeats),
)  # fmt: skip
