"""Laws in files and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rhoc.compiler.fits import fit_runs, load_fit, save_fit
from rhoc.compiler.law_files import law_text, load_law
from rhoc.compiler.query import predict
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import LAWS, Law
from rhoc.runtime.laws.result import Fit

from .command_line import CommandLine
from .simulated import simulated, with_errors

RUNS = Path(__file__).parent / "data" / "quest_runs.csv"
OWN = """
name: shifted
formula: L = E + A/(N*rho + shift)^alpha + B/D^beta
rho: free
source: a law of one's own
parameters:
- {name: E, meaning: loss that stays}
- {name: A, meaning: weight of size}
- {name: alpha, low: 0.01, high: 2, meaning: exponent of size}
- {name: B, meaning: weight of data}
- {name: beta, low: 0.01, high: 2, meaning: exponent of data}
- {name: shift, low: 1.0e+5, high: 1.0e+9, meaning: parameters that embeddings add}
"""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_a_law_reads_back_from_its_text(law: Law, tmp_path: Path) -> None:
    path = tmp_path / "law.yaml"
    renamed = yaml.safe_load(law_text(law)) | {"name": "own"}
    path.write_text(yaml.safe_dump(renamed), encoding="utf-8")
    found = load_law(path)
    assert (found.formula, found.parameters, found.columns, found.rho) == (
        law.formula, law.parameters, law.columns, law.rho,
    )  # fmt: skip


def test_a_law_of_ones_own_goes_all_the_way(tmp_path: Path) -> None:
    """A free rho in a place where it is no plain factor is searched, saved with its law, and asked."""
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    runs = simulated(0, noise=1e-4)
    fitted = fit_runs(runs, str(tmp_path / "own.yaml"), bootstraps=50)
    save_fit(fitted, tmp_path / "fit.json")
    read = load_fit(tmp_path / "fit.json")
    assert read.law == load_law(tmp_path / "own.yaml")
    assert read.rho["int2"].value == pytest.approx(0.45, abs=0.05)
    asked = predict("int2", 1e8, 1e10, fit=read)
    assert asked["loss"] == pytest.approx(fitted.loss(1e8, 1e10, fitted.rho["int2"].value))


def test_refusals(tmp_path: Path, command: CommandLine) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("shifted", "gamma"), encoding="utf-8")
    with pytest.raises(RequestError, match="a shipped law is called 'gamma' already"):
        load_law(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("name: own\nformula: L = E", encoding="utf-8")
    with pytest.raises(RequestError, match=r"own.yaml: not a law \(KeyError: 'parameters'\)"):
        load_law(tmp_path / "own.yaml")
    with pytest.raises(RequestError, match="residuals are 'cubic'; they are log or linear"):
        fit_runs(RUNS, residuals="cubic", bootstraps=0)
    said = command("fit", RUNS, "--law", "chinchila")
    assert said.code == 2
    assert "did you mean 'chinchilla'" in said.err


def test_laws_are_listed_and_shown(command: CommandLine) -> None:
    listed = command("laws", "ls", "--json").document["laws"]
    assert [row["name"] for row in listed] == [law.name for law in LAWS]
    shown = command("laws", "show", "gamma")
    assert yaml.safe_load(shown.out)["formula"] == "L = (A/(N*rho)^alpha + B/(D*rho_D)^beta)^gamma + E"


def test_published_constants_against_runs(command: CommandLine) -> None:
    rows = command("fit", RUNS, "--law", "quest", "--check-published", "--json").document["published"]
    assert [row["fit"] for row in rows] == ["quest"]
    assert "standard errors" in rows[0]["sentence"]


@pytest.mark.parametrize(("ceiling", "name"), [(False, "representation"), (True, "representation-ceiling")])
def test_a_fit_of_an_earlier_version_is_read(ceiling: bool, name: str) -> None:
    document = fit_runs(with_errors(0), "representation", bootstraps=0).to_document()
    del document["declaration"], document["aicc"], document["residual_kind"]
    document["conventions"] = {"free_ceiling": ceiling}
    assert Fit.from_document(document).law.name == name
