"""Take the mean out of what writes a stream, so that its layer norms become RMS norms, which can be rotated.

A layer norm first subtracts the mean over features. That is a linear map, which the weights that write the
stream can do as well; an RMS norm of vectors with mean zero is then the layer norm (SliceGPT, 2401.15024,
section 3.2). After the rotation the mean of the features is not zero any more, and a layer norm would
subtract it, so that the module itself must be exchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ..runtime.folded import CentredNorm
from .aten import Reads
from .exchange import exchange, why_not
from .norms import Norm, norm_of
from .sites import attribute, parameter_of
from .streams import Stream, segments
from .turn import turn

aten = torch.ops.aten


def why_not_centred(gm: fx.GraphModule, stream: Stream) -> str | None:
    """Why the layer norms of a stream cannot become RMS norms, or None when they can."""
    reads = Reads.of(gm)
    for norm in _norms(gm, stream):
        why = _why_not_exchanged(gm, norm, stream, reads)
        if why is not None:
            return why
    if len(stream.sizes) > 1:
        return "a layer norm takes the mean of features that lie in several vectors"
    sources = _sources(gm, stream)
    for segment in segments(stream, gm):
        if sources & segment:
            why = _why_not_segment(gm, stream, segment)
            if why is not None:
                return why
    return None


def centre(gm: fx.GraphModule, stream: Stream) -> None:
    """Centre what writes the inputs of layer norms, and exchange these for RMS norms of the same keys."""
    sources = _sources(gm, stream)
    for segment in segments(stream, gm):
        if sources & segment:
            writers = [end for end in stream.writers if end.node in segment]
            turn(gm, writers, [node for node in stream.added if node in segment], _centred)
    for path in dict.fromkeys(_module_path(norm) for norm in _norms(gm, stream)):
        exchange(gm, path, CentredNorm(attribute(gm, path)))
    for norm in _norms(gm, stream):
        _as_rms(gm, norm)


def _as_rms(gm: fx.GraphModule, norm: Norm) -> None:
    scale = norm.node.args[2]
    with gm.graph.inserting_before(norm.node):
        new = gm.graph.call_function(aten.rms_norm.default, (norm.source, [norm.size], scale, norm.eps))
        new.meta = dict(norm.node.meta)
        if norm.bias is not None:
            new = gm.graph.call_function(aten.add.Tensor, (new, norm.bias))
            new.meta = dict(norm.node.meta)
    norm.node.replace_all_uses_with(new)
    gm.graph.erase_node(norm.node)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _norms(gm: fx.GraphModule, stream: Stream) -> list[Norm]:
    return [norm for node in stream.norms if (norm := norm_of(gm, node)) is not None]


def _sources(gm: fx.GraphModule, stream: Stream) -> set[fx.Node]:
    return {norm.source for norm in _norms(gm, stream)}


def _module_path(norm: Norm) -> str:
    return norm.path.rpartition(".")[0]


def _why_not_exchanged(gm: fx.GraphModule, norm: Norm, stream: Stream, reads: Reads) -> str | None:
    if norm.weight is None:
        return "LayerNorm: without a weight its module cannot be told"
    why = why_not(gm, _module_path(norm), (nn.LayerNorm,))
    if why is not None:
        return f"LayerNorm {norm.path}: {why}"
    if not set(reads.all_of(parameter_of(gm, norm.weight))) <= set(stream.norms):
        return f"LayerNorm {norm.path}: its weight is read in another way too"
    return None


def _why_not_segment(gm: fx.GraphModule, stream: Stream, segment: frozenset[fx.Node]) -> str | None:
    """Whatever reads the vectors before their mean is subtracted would miss the mean."""
    for end in stream.readers:
        if end.node in segment:
            return f"LayerNorm: {end.path} reads the stream with its mean"
    for node in stream.tensors:
        norm = norm_of(gm, node)
        if norm is not None and norm.kind == "rms" and norm.source in segment:
            return f"LayerNorm: {norm.path} norms the stream with its mean"
    written = {id(parameter_of(gm, end.site.weight)) for end in stream.writers if end.side == "columns"}
    for end in stream.readers:
        if id(parameter_of(gm, end.site.weight)) in written:
            return f"LayerNorm: {end.path} is tied to a lookup, whose mean the norms take out"
    return None
