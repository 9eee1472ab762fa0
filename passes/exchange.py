"""Exchange a module for another with the same parameter and buffer names."""

from __future__ import annotations

from torch import fx, nn

from .sites import attribute

_KEY = "rhoc.exchange"


def exchange(gm: fx.GraphModule, path: str, module: nn.Module) -> None:
    """Put a module at a path, and wherever else the module there now is registered.

    A graph of a whole model shares all modules with it but the root, so that children of the root must be set
    in the model too: `carry_over` does that.
    """
    old = attribute(gm, path)
    paths = [name for name, each in gm.named_modules(remove_duplicate=False) if each is old]
    if set(old.state_dict()) != set(module.state_dict()):
        raise ValueError(f"the module for {path} has other keys: {sorted(module.state_dict())}")
    module.train(old.training)
    for name in paths:
        _set(gm, name, module)
        gm.meta.setdefault(_KEY, {})[name] = module


def exchanged(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """What passes put in place of modules of the model, by path."""
    return dict(gm.meta.get(_KEY, {}))


def carry_over(gm: fx.GraphModule, model: nn.Module) -> None:
    """Make the exchanges in the model that the graph was made of."""
    for path, module in exchanged(gm).items():
        _set(model, path, module)


def why_not(gm: fx.GraphModule, path: str, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Why the module at a path, which computes a norm, cannot be exchanged; None when it can."""
    module, parent = attribute(gm, path), attribute(gm, path.rpartition(".")[0])
    if type(module) not in kinds:
        known = " or ".join(kind.__name__ for kind in kinds)
        return f"it is computed by {type(module).__name__}, which is not {known}"
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "TransformerEncoderLayer has a fast path that computes it without its module"
    assert isinstance(module, nn.Module)
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return "its module has hooks, which an exchange would lose" if any(hooks) else None


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = attribute(root, parent) if parent else root
    owner._modules[name] = module
