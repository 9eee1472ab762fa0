"""Keys and values in a representation, as an attention cache would keep them, wherever a module attends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .derived_class import blank, derived
from .projection import Project

_KEY, _VALUE = 1, 2  # positions in a call of scaled_dot_product_attention


class _Attending(TorchFunctionMode):
    """Projects keys and values on their way into `F.scaled_dot_product_attention`."""

    def __init__(self, projection: Project) -> None:
        super().__init__()
        self.projection = projection

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            args, kwargs = _projected(self.projection, args, kwargs)
        return func(*args, **kwargs)


def _projected(projection: Project, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    given = list(args)
    for position, name in ((_KEY, "key"), (_VALUE, "value")):
        if len(given) > position:
            given[position] = projection(given[position])
        else:
            kwargs = kwargs | {name: projection(kwargs[name])}
    return tuple(given), kwargs


class Attends(nn.Module):
    """A module, run as the user wrote it, whose keys and values are projected where it attends.

    Made by `attending`, as a class of its own above the user's.
    """

    cache: Project

    def held(self) -> list[nn.Module]:
        """The projection, which `modules()` does not show."""
        return [self.__dict__["cache"]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's forward gives, from represented keys and values."""
        with _Attending(self.__dict__["cache"]):
            return cast(Any, super()).forward(*args, **kwargs)


def attending(module: nn.Module, cache: Project) -> nn.Module:
    """A module that shares all of `module`'s state and runs its code with represented keys and values."""
    new: Any = blank(derived(Attends, module))
    new.__dict__.update(module.__dict__)
    new.__dict__["cache"] = cache
    return cast(nn.Module, new)


class Watching(TorchFunctionMode):
    """Counts attention calls, by the innermost of the modules that are being run."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            for path in self.running:
                self.calls[path] = self.calls.get(path, 0) + 1
        return func(*args, **(kwargs or {}))
