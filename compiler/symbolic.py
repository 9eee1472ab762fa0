"""Whole-graph capture by symbolic tracing, with everything refused that a trace would silently get wrong.

A trace runs `forward` once with stand-ins for the inputs. What Python decides during that run is fixed for
good: the branch on `self.training`, the presence of an optional argument, a tensor made on the way, a
`no_grad` block, an attribute that was set. Each of these is looked for, and a module that does one of them is
not traced.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Refused(Exception):
    """Why a module cannot be traced."""


class _Tracer(fx.Tracer):
    """torch's tracer; buffers are graph inputs like parameters, and what changes under it is refused."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.state = _state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _state() != self.state:
            raise Refused("its forward switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)


def symbolic(module: nn.Module) -> fx.Graph | str:
    """The graph of `module.forward`, or why a trace of it cannot be trusted. The module is left as it was."""
    reason = _unsuitable(module)
    if reason is not None:
        return reason
    try:
        with _untouched(module):
            graphs = [_trace(module, training) for training in (True, False)]
    except Refused as refused:
        return str(refused)
    except Exception as error:  # user code may raise anything when it is run on stand-ins
        return f"symbolic tracing failed: {_first_line(error)}"
    if str(graphs[0]) != str(graphs[1]):
        return "its forward differs between train() and eval()"
    return graphs[0]


def _unsuitable(module: nn.Module) -> str | None:
    """What can be seen without running anything."""
    if isinstance(module, fx.GraphModule):
        return None
    if isinstance(module, _CONTAINERS) and not isinstance(module, nn.Sequential):
        return "it is a container without a forward"
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return f"its forward takes the variadic or keyword-only argument {parameter.name!r}"
        if parameter.default is not parameter.empty:
            return (
                f"its forward has the optional argument {parameter.name!r}, whose absence a trace cannot see"
            )
    hooked = next((name for name, child in module.named_modules() if name and _hooked(child)), None)
    return f"{hooked} has hooks, which a trace would run only once" if hooked is not None else None


def _hooked(module: nn.Module) -> bool:
    return any(
        getattr(module, name)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def _trace(module: nn.Module, training: bool) -> fx.Graph:
    with _mode(module, training):
        tracer = _Tracer()
        graph = tracer.trace(module)
    known = {name for name, _ in (*module.named_parameters(remove_duplicate=False), *_buffers(module))}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            raise Refused("its forward makes a tensor of its own, which a trace would fix")
    return graph


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_buffers(remove_duplicate=False)


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """All submodules in one mode, and each in its own again afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    for child, _ in modes:
        child.training = training
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Raise `Refused` when the block changes an attribute of a submodule, and undo the change either way."""
    before = [(child, _snapshot(child)) for child in module.modules()]
    changed: str | None = None
    try:
        yield
    finally:
        for child, attributes in before:
            changed = _restore(child, attributes) or changed
    if changed is not None:
        raise Refused(f"its forward sets the attribute {changed!r}")


def _snapshot(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Every attribute with, for a plain container, a copy of its contents."""
    return {name: (value, _contents(value)) for name, value in vars(module).items()}


def _contents(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict, set) else None


def _restore(module: nn.Module, before: dict[str, tuple[Any, Any]]) -> str | None:
    """Put attributes back; the name of one that had changed, or None."""
    changed = None
    for name in [name for name in vars(module) if name not in before]:
        changed = name
        del module.__dict__[name]
    for name, (value, contents) in before.items():
        if vars(module).get(name) is not value:
            changed = name
            module.__dict__[name] = value
        if contents is not None and not _same(value, contents):
            changed = name
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(contents)
    return changed


def _same(value: Any, contents: Any) -> bool:
    """Whether a container still holds the same objects."""
    if len(value) != len(contents):
        return False
    if isinstance(value, dict):
        return all(key in contents and contents[key] is item for key, item in value.items())
    if isinstance(value, list):
        return all(a is b for a, b in zip(value, contents, strict=True))
    return bool(value == contents)


def _state() -> tuple[bool, bool, bool]:
    """What a context manager may have switched."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
