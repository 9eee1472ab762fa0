"""Lays the source folders out under their import names, for type checkers and import tests.

pip's editable install is an import hook, which tools that read files cannot see. `lay_out` links each
folder of `[tool.setuptools.package-dir]` (the one source of truth) into `build/ns/rhoc/...`.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def package_dirs() -> dict[str, Path]:
    """Import name to folder, as `pyproject.toml` maps them."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    return {name: ROOT / folder for name, folder in mapping.items()}


def lay_out(into: Path = ROOT / "build" / "ns") -> Path:
    """Make the links afresh and return the folder to put on a search path."""
    mapping = package_dirs()
    shutil.rmtree(into, ignore_errors=True)
    (top,) = (name for name in mapping if "." not in name)
    (into / top).mkdir(parents=True)
    for name, folder in mapping.items():
        target = into / Path(*name.split("."))
        if name == top:
            for file in folder.iterdir():
                if file.is_file():
                    (target / file.name).symlink_to(file)
        else:
            target.symlink_to(folder, target_is_directory=True)
    return into


if __name__ == "__main__":
    print(lay_out())
