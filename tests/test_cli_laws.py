"""`rhoc fit` and `rhoc predict` on the command line, from runs with planted multipliers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhoc.compiler.fits import fit_runs, save_fit
from rhoc.compiler.runs_csv import write_runs_csv
from rhoc.runtime.errors import RequestError

from .command_line import CommandLine
from .simulated import RHO, simulated


@pytest.fixture
def runs(command: CommandLine) -> Path:
    """A CSV of simulated runs, `int4-int2` among them though nothing of it is a product."""
    made = simulated(0, rho={**RHO, "int4-int2": 0.5})
    columns = (made.params, made.tokens, made.loss, made.representation)
    rows = [
        {"params": float(n), "tokens": float(d), "loss": float(loss), "representation": name}
        for n, d, loss, name in zip(*columns, strict=True)
    ]
    write_runs_csv(command.folder / "runs.csv", rows)
    return command.folder / "runs.csv"


def test_a_fit_is_shown_saved_and_asked(command: CommandLine, runs: Path) -> None:
    said = command("fit", runs, "--bootstraps", 50, "--out", "fit.json")
    assert said.code == 0
    assert "converged" in said.out
    assert "int2" in said.out
    asked = command("predict", "int2", "--params", "1e8", "--tokens", "3e9", "--fit", "fit.json")
    assert asked.code == 0
    assert "inside the range of the runs" in asked.out
    assert "product rule" not in asked.out
    answer = command("predict", "int2", "--params", "1e8", "--tokens", "3e9", "--fit", "fit.json", "--json")
    assert answer.document["rho"] == pytest.approx(RHO["int2"], abs=0.05)
    assert answer.document["effective_parameters"] == pytest.approx(1e8 * answer.document["rho"])


def test_factors_that_are_named_are_multiplied_even_when_the_whole_was_run(
    command: CommandLine, runs: Path
) -> None:
    command("fit", runs, "--bootstraps", 50, "--out", "fit.json")
    question = ("predict", "int4-int2", "--params", "1e8", "--tokens", "3e9", "--fit", "fit.json")
    measured = command(*question, "--json").document
    product = command(*question, "--factors", "int4,int2", "--json").document
    assert measured["rho"] == pytest.approx(0.5, abs=0.05)
    assert measured["composition"] is None
    assert product["rho"] == pytest.approx(RHO["int4"] * RHO["int2"], abs=0.05)
    assert product["composition"]["parts"] == ["int4", "int2"]
    assert "product rule" in command(*question, "--factors", "int4,int2").out


def test_published_fits_answer_without_runs(command: CommandLine) -> None:
    said = command("predict", "int4-a4", "--params", "1e9", "--tokens", "2e10", "--source", "quest")
    assert said.code == 0
    assert "0.6918" in said.out  # papers.md 3.3, W4A4
    assert "outside the range of the runs by 1.22 times in N" in said.out


def test_what_a_fit_cannot_answer_is_said(command: CommandLine, runs: Path) -> None:
    command("fit", runs, "--bootstraps", 50, "--out", "fit.json")
    said = command("predict", "sparse50", "--params", "1e8", "--tokens", "3e9", "--fit", "fit.json")
    assert said.code == 2
    assert "no runs of 'sparse50'" in said.err
    assert "Traceback" not in said.err


def test_published_fits_are_listed_and_named(command: CommandLine) -> None:
    listed = {row["name"]: row for row in command("laws", "published", "--json").document["published"]}
    assert listed["quest"]["gives_loss"]
    assert "int4-a4" in listed["quest"]["formats"]
    assert "scalar" in listed["panferov-llama-c4"]["families"]
    assert "quest" in command("laws", "published").out
    wrong = command("predict", "int4", "--params", "1e9", "--tokens", "2e10", "--source", "qest")
    assert wrong.code == 2
    assert "did you mean 'quest'? (`rhoc laws published` lists them)" in wrong.err


def test_parameters_beyond_all_numbers_are_not_saved(command: CommandLine) -> None:
    made = simulated(0)
    made = replace(made, loss=np.exp(np.random.default_rng(0).normal(1, 0.3, len(made))))
    found = fit_runs(made, "kaplan", bootstraps=0)
    assert found.values["A"] == float("inf")
    with pytest.raises(RequestError, match="A, N_c of this fit are beyond all numbers"):
        save_fit(found, command.folder / "fit.json")
    assert not (command.folder / "fit.json").exists()
