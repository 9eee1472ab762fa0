"""Graphs of whole models, prepared and run through passes that must not change their values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from rhoc.compiler.example import Example
from rhoc.compiler.whole import whole_graph
from rhoc.passes.assignment import Assignment, assign
from rhoc.passes.base import Pass
from rhoc.passes.exchange import carry_over
from rhoc.passes.facts import ASSIGNED
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.sites import Site, sites
from rhoc.runtime.representation import Representation

Given = Callable[[Site], Assignment]


def graph_of(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    """The whole graph; the test fails where there is none."""
    gm = whole_graph(model.eval(), Example(inputs))
    assert isinstance(gm, fx.GraphModule), gm
    return gm


def everywhere(weight: Representation, inputs: Representation = Representation()) -> Given:  # noqa: B008
    """The same representation for every weight, and for every input that there is."""

    def given(site: Site) -> Assignment:
        return Assignment(weight=weight, input=inputs if site.source is not None else Representation())

    return given


def run(
    model: nn.Module, inputs: tuple[Tensor, ...], passes: tuple[Pass, ...], given: Given | None = None
) -> fx.GraphModule:
    """The graph after the passes, every promise checked by the pipeline, with the model changed alike."""
    gm = graph_of(model, *inputs)
    for site in sites(gm):
        assign(site.weight, given(site) if given is not None else Assignment())
    Pipeline(passes, given=frozenset({ASSIGNED})).run(gm, probe=inputs)
    carry_over(gm, model)
    return gm


def same(before: Tensor, after: Tensor) -> bool:
    """Equal within a thousand roundings of the largest value."""
    before, after = before.detach(), after.detach()
    tolerance = 1e3 * torch.finfo(before.dtype).eps * float(before.abs().max())
    return bool((before - after).abs().max() <= tolerance)


def kept(
    model: nn.Module, inputs: tuple[Tensor, ...], passes: tuple[Pass, ...], given: Given | None = None
) -> fx.GraphModule:
    """`run`, where graph and model must both give the values that the model gave, under the same keys."""
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model.eval()(*inputs)
        gm = run(model, inputs, passes, given)
        assert same(before, gm(*inputs)[0])
        assert same(before, model(*inputs))
    assert list(model.state_dict()) == keys
    return gm


def varied(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with scales, biases and statistics of norms that are neither one nor zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if "norm" not in type(module).__name__.lower() and name != "bias":
                continue
            if tensor.is_floating_point():
                low = -0.5 if name in ("bias", "running_mean") else 0.5
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model
