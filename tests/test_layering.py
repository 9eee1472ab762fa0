"""What holds the folders apart: direction of imports, list of packages, sizes of files, docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from rhoc.runtime.estimators import ESTIMATORS, Estimator
from rhoc.runtime.stages import STAGES, Stage

from .namespace import ROOT, package_dirs

FOLDERS = {"compiler", "passes", "runtime", "specs"}
MAY_IMPORT = {
    "runtime": {"runtime"},
    "passes": {"passes", "runtime"},
    "compiler": {"compiler", "passes", "runtime", "specs"},
    "specs": {"specs"},
}
TOP_LEVEL = FOLDERS | {"tests", "pyproject.toml", "README.md", "LICENSE", "Makefile", ".ci", ".gitignore"}
FRONT_DOOR = ROOT / "compiler" / "rhoc" / "__init__.py"
LONGEST = 500


def modules() -> dict[str, Path]:
    """Import name to file of every module of the package."""
    found = {}
    for name, folder in package_dirs().items():
        files = [folder / "__init__.py"] if name == "rhoc" else folder.rglob("*.py")
        for file in files:
            if name != "rhoc" and FRONT_DOOR.parent in file.parents:
                continue
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = file
    return dict(sorted(found.items()))


MODULES = modules()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(name: str, file: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute name and whether it was written relative, of everything a module imports."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{target}.{alias.name}", node.level > 0


def violations(name: str, file: Path) -> list[str]:
    """What a module imports and must not."""
    if file == FRONT_DOOR:
        return [f"{line}: {target} is relative" for line, target, relative in imports(name, file) if relative]
    folder = name.split(".")[1]
    wrong = []
    for line, target, relative in imports(name, file):
        top, _, rest = target.partition(".")
        if not relative and (top in FOLDERS or top == "rhoc"):
            wrong.append(f"{line}: {target} is not relative")
        elif relative and rest.split(".")[0] not in MAY_IMPORT[folder]:
            wrong.append(f"{line}: {folder} imports {target}")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    assert violations(name, MODULES[name]) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("rhoc.runtime.a", "from ..passes.base import Pass", "1: runtime imports rhoc.passes.base.Pass"),
        ("rhoc.runtime.laws.a", "from ... import specs", "1: runtime imports rhoc.specs"),
        (
            "rhoc.passes.a",
            "def f():\n    from ..compiler import spec",
            "2: passes imports rhoc.compiler.spec",
        ),
        (
            "rhoc.specs.a",
            "from ..runtime.digest import digest",
            "1: specs imports rhoc.runtime.digest.digest",
        ),
        (
            "rhoc.compiler.a",
            "from rhoc.runtime.digest import digest",
            "1: rhoc.runtime.digest.digest is not relative",
        ),
        ("rhoc.compiler.a", "import runtime.digest", "1: runtime.digest is not relative"),
        ("rhoc.compiler.a", "from passes import base", "1: passes.base is not relative"),
        ("rhoc.compiler.cli.a", "from ...passes import base\nfrom ..spec import Spec\nimport torch", None),
    ],
)
def test_planted_violations_are_found(tmp_path: Path, name: str, text: str, found: str | None) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert violations(name, file) == ([found] if found else [])


def test_the_list_of_packages_is_the_folders() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in MODULES.items()
    }
    assert sorted(setuptools["packages"]) == setuptools["packages"], "in order"
    assert set(setuptools["packages"]) == folders
    for name, file in MODULES.items():
        assert (file.parent / "__init__.py").exists(), f"{name} lies in a folder without __init__.py"


def test_data_files_are_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in patterns["rhoc.specs"] for path in (ROOT / "specs").glob(pattern)}
    there = {
        path for path in (ROOT / "specs").rglob("*") if path.suffix not in {".py", ".pyc"} and path.is_file()
    }
    assert there == shipped
    assert (FRONT_DOOR.parent / "py.typed").exists()


def test_the_front_door_does_not_pay_for_torch() -> None:
    script = "import rhoc, sys; print(sorted({'torch', 'numpy', 'pydantic', 'scipy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_only_who_compiles_pays_for_the_tracer_of_torch() -> None:
    script = (
        "import sys, rhoc.compiler.cli, rhoc.runtime.packed as packed; print('torch._dynamo' in sys.modules); "
        "import torch._dynamo; print(packed.Packed.has_kernel.fget._dynamo_marked_constant)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.split() == ["False", "True"]


def test_a_packed_model_needs_the_runtime_alone() -> None:
    script = "import rhoc.runtime.projection, sys; print([m for m in sys.modules if m.startswith('rhoc.')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = ast.literal_eval(done.stdout.strip())
    assert {name.split(".")[1] for name in loaded} == {"runtime"}


def test_nothing_else_lands_at_the_top_level() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.partition("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_files_stay_small() -> None:
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize("name", MODULES)
def test_public_names_say_what_they_are(name: str) -> None:
    module = tree(MODULES[name])
    silent = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            silent += [] if ast.get_docstring(node) else [node.name]
    assert silent == []


@pytest.mark.parametrize(
    "name", [name for name, file in MODULES.items() if ">>> " in file.read_text(encoding="utf-8")]
)
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def leaves(package: str, base: type) -> set[type]:
    """Concrete subclasses defined in the modules of a package."""
    found = set()
    for name in MODULES:
        if name.startswith(package + "."):
            for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
                if issubclass(kind, base) and not inspect.isabstract(kind) and kind.__module__ == name:
                    found.add(kind)
    return found


@pytest.mark.parametrize(
    ("package", "base", "registered"),
    [("rhoc.runtime.stages", Stage, STAGES), ("rhoc.runtime.estimators", Estimator, ESTIMATORS)],
)
def test_every_kind_is_registered_and_is_a_frozen_value(
    package: str, base: type, registered: tuple[type, ...]
) -> None:
    assert leaves(package, base) == set(registered)
    kinds = []
    for kind in registered:
        assert is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        heirs = [heir for heir in kind.__subclasses__() if heir.__module__ in MODULES]
        assert heirs == [], "a leaf stays a leaf"
        kinds += [field.default for field in fields(kind) if field.name == "kind"]
    assert len(set(kinds)) == len(registered)
