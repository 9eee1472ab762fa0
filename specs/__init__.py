"""Shipped formats, sweeps and published multipliers."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The names of the shipped specs, in order."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def path(name: str) -> Path:
    """The file of a shipped spec."""
    return _FOLDER / f"{name}.yaml"
