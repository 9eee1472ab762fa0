"""The whole model as one graph of ATen operations, for passes that look across layers.

`torch.export` sees through what symbolic tracing refuses: optional and variadic arguments, branches on
shapes, caches, Hugging Face's attention interfaces. Its graph holds for the example inputs and for `eval()`;
it is read and its parameters are rewritten, and the model that runs afterwards is still the user's own.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..passes.aten import note_argument
from ..passes.simplify import Simplify
from ..runtime.structure import undisturbed
from .example import Example


class _TensorsOnly(nn.Module):
    """A model that returns the tensors of its output and nothing else: no cache, no output class."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The tensors, in order."""
        return tensors_in(self.model(*args, **kwargs))


def tensors_in(value: object) -> list[Tensor]:
    """The tensors of a model's output: those in lists, tuples and mappings, in order.

    What else it holds (attention caches, numbers, None) is passed over.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors_in(item)] if isinstance(value, list | tuple) else []


def whole_graph(model: nn.Module, example: Example) -> fx.GraphModule | str:
    """The graph of a model on example inputs in eval(), or why there is none.

    It shares parameters, buffers and modules with `model`, under their paths; a tied parameter goes by the
    first of its paths. Inputs are the tensors of `example`, in order; outputs are the tensors of the output.
    """
    wrapped = _TensorsOnly(model)
    try:
        with undisturbed(model), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of what it does itself
            program = torch.export.export(wrapped, example.args, dict(example.kwargs), strict=False)
            if _writes(program.graph_module):
                program = program.run_decompositions({})  # what was written in place is a value of its own
        exported = program.module(check_guards=False)
        assert isinstance(exported, fx.GraphModule)
        gm = _rooted(model, exported)
        _name_arguments(model, gm)
        Simplify().rewrite(gm)
    except Exception as error:  # the model's own code, or something that export cannot express
        return f"torch.export failed: {first_line(error)}"
    gm.recompile()
    return gm


def _writes(gm: fx.GraphModule) -> bool:
    """Whether an operation changes one of its arguments, here or in a graph inside."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for module in gm.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )


def _rooted(model: nn.Module, exported: fx.GraphModule) -> fx.GraphModule:
    """The exported graph over the model itself rather than over a copy of what it reads."""
    first = {id(tensor): name for name, tensor in _tensors(model)}
    by_path = dict(_tensors(model, every=True))
    gm = fx.GraphModule(nn.Module(), fx.Graph())
    gm.__dict__.update(
        {k: dict(v) for k, v in vars(model).items() if k in ("_parameters", "_buffers", "_modules")}
    )
    gm.training = False
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    readers: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        path = str(node.target).removeprefix("model.") if node.op == "get_attr" else ""
        name = first[id(by_path[path])] if path in by_path else ""
        if name in readers:  # tied: read once
            copied[node] = readers[name]
            continue
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            continue  # a flag or a number: the graph holds for the value that it had
        new = graph.node_copy(node, lambda old: copied[old])
        copied[node] = new
        if node.op != "get_attr":
            continue
        if name:
            new.target, readers[name] = name, new
        else:  # a tensor or a subgraph that export lifted out of the code
            new.target = _adopt(gm, str(node.target), _attribute(exported, str(node.target)))
    gm.graph = graph
    return gm


def _name_arguments(model: nn.Module, gm: fx.GraphModule) -> None:
    """Note on inputs of a graph which arguments of the model's forward they are; export numbers those that
    were given by position, `args_0` and so on."""
    names = list(inspect.signature(model.forward).parameters)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            number = re.fullmatch(r"args_(\d+)", str(node.target))
            known = number is not None and int(number[1]) < len(names)
            note_argument(node, names[int(number[1])] if number and known else str(node.target))


def _adopt(gm: fx.GraphModule, path: str, value: Any) -> str:
    name = "lifted_" + path.replace(".", "_")
    setattr(gm, name, value)
    return name


def _tensors(model: nn.Module, every: bool = False) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by path, the last of a tensor's paths first, so that a dict keeps the first."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return named if every else named[::-1]


def _attribute(root: Any, path: str) -> Any:
    for atom in path.split("."):
        root = getattr(root, atom)
    return root


def first_line(error: Exception) -> str:
    """What an exception says first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
