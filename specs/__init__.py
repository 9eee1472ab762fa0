"""What is declared: formats, sweeps and published multipliers in YAML, found by name."""

from __future__ import annotations

from pathlib import Path

from .presets import PRESETS

_HERE = Path(__file__).parent

GAUSSIAN_ERRORS = _HERE / "gaussian_errors.json"
"""Gaussian errors that take long to compute, by the text of the representation."""


def names() -> list[str]:
    """Names of the shipped specs, in alphabetical order."""
    return sorted(file.stem for file in _HERE.glob("*.yaml"))


def systems() -> list[str]:
    """Names of the published systems that ship as specs, `systems/NAME`, in alphabetical order."""
    return sorted(f"systems/{file.stem}" for file in (_HERE / "systems").glob("*.yaml"))


def path(name: str) -> Path:
    """The file of a shipped spec. Raises KeyError for a name that is not shipped."""
    if name not in (*names(), *systems()):
        raise KeyError(name)
    return _HERE / f"{name}.yaml"


def resolve(name: str) -> str | None:
    """The shipped spec that a name means, its own or a preset's; None for any other."""
    return name if name in (*names(), *systems()) else PRESETS.get(name)


def sweeps() -> list[Path]:
    """Files of the shipped sweeps, in alphabetical order."""
    return sorted((_HERE / "sweeps").glob("*.yaml"))


def published() -> list[Path]:
    """Files of the published multipliers, in alphabetical order."""
    return sorted((_HERE / "published").glob("*.yaml"))
