"""Modules that run otherwise and are still of the user's class."""

from __future__ import annotations

from typing import Any

from torch import nn


def derived(base: type[nn.Module], module: nn.Module, **members: Any) -> type[Any]:
    """A class that runs as `base` and is otherwise the class of `module`."""
    cls = type(module)
    bases = (base,) if issubclass(base, cls) else (base, cls)
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, bases, named | members)


def blank(cls: type[Any]) -> Any:
    """An instance on which no `__init__` was run."""
    return cls.__new__(cls)  # type: ignore[call-overload]
