"""A part: a module whose forward is one torch.fx graph, and which is otherwise still the user's module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from torch import Tensor, fx, nn

from ..runtime.errors import RequestError
from ..runtime.projection import Project
from .assignment import assigned
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
    part = _new(_derived(Part, module))
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
    latent = {str(node.target).rpartition(".")[0] for node in parameter_nodes(part) if _projected(part, node)}
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


class StandIn(nn.Module):
    """A part in the place of a module whose parent runs as Python.

    Calls go to the part. The parent may also read parameters by itself (`F.linear(x, self.embed.weight)`): a
    latent weight read as an attribute is projected, as it is in the part. `state_dict`, `parameters` and
    optimisers see the latent weight. Made by `stand_in`.
    """

    part: Part
    projections: dict[str, Project]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the part computes; hooks are run here, hence not by the part."""
        return self.part.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        projection = self.__dict__.get("projections", {}).get(name)
        return value if projection is None or not isinstance(value, Tensor) else projection(value)


def stand_in(module: nn.Module, part: Part) -> StandIn:
    """A stand-in for `module` that shares its state and runs `part`, which was made of it."""
    new = cast(StandIn, _blank(_derived(StandIn, module)))
    new.__dict__.update(module.__dict__)
    new.__dict__["part"] = part
    new.__dict__["projections"] = _projections(part)
    # nn.TransformerEncoderLayer has a fast path that skips its submodules unless one of them has a hook.
    new.register_forward_pre_hook(_nothing)
    return new


def _projections(part: Part) -> dict[str, Project]:
    """The projection of each latent weight, by name."""
    found = {}
    for node in parameter_nodes(part):
        assignment = assigned(node)
        if assignment is not None and _projected(part, node):
            found[str(node.target)] = Project(assignment.weight, assignment.weight_estimators)
    return found


def _projected(part: Part, weight: fx.Node) -> bool:
    """Whether a projection reads the parameter."""
    return any(isinstance(attribute(part, str(user.target)), Project) for user in weight.users)


def _derived(base: type[nn.Module], module: nn.Module) -> type[Any]:
    """A class that runs as `base` and is otherwise the class of `module`."""
    cls = type(module)
    bases = (base,) if issubclass(base, cls) else (base, cls)
    return type(cls.__name__, bases, {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _new(cls: type[Any]) -> Part:
    """An empty part; every part has a class of its own, named like the user's."""
    part = _blank(cls)
    type(part).__name__ = next(base.__name__ for base in cls.__mro__ if base.__name__ != "GraphModuleImpl")
    return cast(Part, part)


def _blank(cls: type[Any]) -> Any:
    """An instance on which no `__init__` was run."""
    return cls.__new__(cls)  # type: ignore[call-overload]


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook that does nothing."""
