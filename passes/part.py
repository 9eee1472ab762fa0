"""A part: a module whose forward is one torch.fx graph, and which is otherwise still the user's module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from torch import fx, nn

from ..runtime.derived_class import blank, derived
from ..runtime.errors import RequestError
from ..runtime.projection import Project
from .container import Container
from .sites import attribute, parameter_nodes


class Part(fx.GraphModule):
    """A graph over everything its module held.

    torch's own `GraphModule` keeps only what the graph reads. A part keeps all of its module: parameters that
    the graph does not touch (so `state_dict` is unchanged), plain attributes, hooks, and, because its class
    derives from the module's, its methods and `isinstance`. Made by `part_of`.
    """

    def __reduce__(self) -> Any:
        raise TypeError("a compiled model cannot be pickled; save its state_dict() and compile again")

    def recompile(self) -> Any:
        """As torch has it, without the wrapper of calls that prints a traceback before it raises an error."""
        code = super().recompile()
        if "__call__" in vars(type(self)):
            delattr(type(self), "__call__")
        return code

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Part:
        copied = _new(type(self))
        memo = {} if memo is None else memo
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied.graph = copied.__dict__["_graph"]
        return copied


def part_of(module: nn.Module, graph: fx.Graph) -> Part:
    """A part that runs `graph` and shares every attribute, parameter and submodule with `module`."""
    plain = Part({}, fx.Graph())
    part = _new(derived(Part, module))
    part.__dict__.update(plain.__dict__)
    part.__dict__.update(module.__dict__)
    part.graph = graph
    return part


_REGISTER_HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@dataclass(frozen=True)
class Refuse:
    """A method of a module that was dissolved into a graph, where a call would go unnoticed: it raises."""

    path: str
    what: str
    advice: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RequestError(
            f"{self.path} was dissolved into the graph of the model, {self.what}", advice=self.advice
        )


def guard(part: Part) -> None:
    """Make modules that a graph dissolved refuse what would silently do nothing, or the wrong thing.

    Hooks on them would never run; called alone, those with latent weights would use them unprojected.
    """
    latent = {
        str(node.target).rpartition(".")[0] for node in parameter_nodes(part) if is_projected(part, node)
    }
    whole = [str(node.target) for node in part.graph.nodes if node.op == "call_module"]
    for path, module in part.named_modules():
        if (
            not path
            or isinstance(module, Container)
            or any(f"{path}.".startswith(f"{call}.") for call in whole)
        ):
            continue
        hooks = Refuse(
            path, "where its hooks would never run", "register hooks on the model before it is compiled"
        )
        module.__dict__.update(dict.fromkeys(_REGISTER_HOOKS, hooks))
        if any(f"{owner}.".startswith(f"{path}.") for owner in latent):
            advice = "call the model; packed() and reference() have modules that can be called alone"
            module.__dict__["forward"] = Refuse(
                path, "and called alone its weights are not projected", advice
            )


def is_projected(part: Part, weight: fx.Node) -> bool:
    """Whether a projection reads the parameter."""
    return any(isinstance(attribute(part, str(user.target)), Project) for user in weight.users)


def _new(cls: type[Any]) -> Part:
    """An empty part; every part has a class of its own, named like the user's."""
    part = blank(cls)
    type(part).__name__ = next(base.__name__ for base in cls.__mro__ if base.__name__ != "GraphModuleImpl")
    return cast(Part, part)
