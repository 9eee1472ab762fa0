"""Which optimiser of torch.optim, with which options: plain data that is checked where it is written."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .errors import RequestError

BETAS = (0.9, 0.95)  # QuEST's setup (papers.md 3.5), as most language models since GPT-3 have them

Option = bool | int | float | str | tuple[float, ...]

_WHERE = "optimizer"
_Base = torch.optim.Optimizer
_KNOWN: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, _Base) and kind is not _Base
}
_REFUSED = {
    "lbfgs": "lbfgs asks for the loss several times a step, and steps here ask once",
    "sparseadam": "sparseadam takes sparse gradients only, and gradients here are dense",
}
_OWN = {  # options that are settings of the run
    "lr": "it is the setting learning_rate",
    "weight_decay": "it is the setting weight_decay, and decoupled under every optimiser",
    "decoupled_weight_decay": "decay is decoupled under every optimiser",
    "params": "it is what the model trains",
    "differentiable": "steps here have no gradient",
    "capturable": "steps here are not captured in CUDA graphs",
}


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimiser of torch.optim by its name in lower case, and options by name in order.

    Raises RequestError for a name that torch.optim has not, and for options that it does not take.
    """

    name: str = "adamw"
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if self.name in _REFUSED:
            raise RequestError(_REFUSED[self.name], where=_WHERE, advice=f"take {_names()}")
        if self.name not in _KNOWN:
            raise RequestError(
                f"torch.optim has no optimiser called {self.name!r}",
                where=_WHERE,
                advice=f"known: {_names()}",
            )
        for option, _ in self.options:
            if option in _OWN:
                raise RequestError(
                    f"{option} is no option: {_OWN[option]}", where=_WHERE, advice="leave it out"
                )
            if option not in self._taken:
                known = ", ".join(name for name in self._taken if name not in _OWN)
                raise RequestError(
                    f"{self.name} has no option {option!r}", where=_WHERE, advice=f"it has {known}"
                )
        if self.options:  # torch itself says which values go together
            self.build([{"params": [nn.Parameter(torch.zeros(2, 2))]}])

    @classmethod
    def read(cls, value: OptimizerChoice | str | Mapping[str, Any]) -> OptimizerChoice:
        """From a name, or a mapping with `name` and options: `{name: sgd, momentum: 0.9}`.

        Raises RequestError as the class does, and for a mapping without a name.
        """
        if isinstance(value, OptimizerChoice):
            return value
        if isinstance(value, str):
            return cls(value.lower())
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise RequestError(
                f"an optimiser is a name or a mapping with a name, got {value!r}",
                where=_WHERE,
                advice="write {name: sgd, momentum: 0.9}",
            )
        options = {name: _tupled(option) for name, option in value.items() if name != "name"}
        return cls(value["name"].lower(), tuple(sorted(options.items())))

    @property
    def kind(self) -> type[torch.optim.Optimizer]:
        """The class in torch.optim."""
        return _KNOWN[self.name]

    @property
    def decays(self) -> bool:
        """Whether its own weight decay is the decoupled one, and is used."""
        return self.kind is torch.optim.AdamW

    @property
    def fused(self) -> bool:
        """Whether torch has it as one kernel: deterministic, and faster than what the compiler makes."""
        chosen = dict(self.options)
        return "fused" in self._taken and not (chosen.get("foreach") or chosen.get("fused") is False)

    def build(self, groups: list[dict[str, Any]], rate: float | torch.Tensor = 0.0) -> torch.optim.Optimizer:
        """The optimiser over these groups. Raises RequestError when torch refuses options or parameters."""
        given: dict[str, Any] = {"betas": BETAS} if self.kind is torch.optim.AdamW else {}
        given |= {"weight_decay": 0.0} if "weight_decay" in self._taken else {}
        given |= {"fused": True} if self.fused else {}
        try:
            return self.kind(groups, lr=rate, **given | dict(self.options))  # type: ignore[call-arg]
        except (ValueError, TypeError, RuntimeError) as error:
            raise RequestError(
                f"{self.name} cannot be made: {str(error).splitlines()[0]}",
                where=_WHERE,
                advice="change its options, or take another",
            ) from error

    def to_document(self) -> dict[str, Any]:
        """Plain JSON: the name, and the options that are set."""
        return {"name": self.name} | {n: list(v) if isinstance(v, tuple) else v for n, v in self.options}

    @cached_property
    def _taken(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.kind.__init__).parameters)[2:]


def _names() -> str:
    return ", ".join(name for name in _KNOWN if name not in _REFUSED)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
