"""Which rotation a stream can take: one that its readers' chains begin with, or one that is added."""

from __future__ import annotations

from typing import Literal

from torch import fx

from ..runtime.errors import RequestError
from ..runtime.representation import Representation
from ..runtime.stage import Stage
from ..runtime.stages.hadamard import Hadamard
from ..runtime.stages.random_rotation import RandomRotation
from .assignment import DENSE, Assignment, assigned
from .streams import End, Stream

_LARGEST = 2**30  # of a Hadamard block, where only the power of two in a size counts


def begun(stream: Stream) -> Representation | str:
    """The rotation that everything represented along the stream begins with, or why there is none."""
    along = [(end.path, _assignment(end)) for end in stream.ends if end.side == "columns"]
    chains = [(path, given.weight) for path, given in along if not given.weight.is_dense]
    chains += [(f"the input of {path}", given.input) for path, given in along if not given.input.is_dense]
    rotations = {chain.rotation for _, chain in chains}
    first = next((chain.rotation for _, chain in chains if chain.rotation.stages), None)
    if first is None:
        return "its chain begins with no rotation"
    if len(rotations) > 1:
        path, other = next((path, chain) for path, chain in chains if chain.rotation != first)
        how = f"begins with {other.rotation}" if other.rotation.stages else "begins with none"
        return f"others in its stream begin with {first}, {path} {how}"
    for end in stream.writers:
        if end.side == "rows" and not _assignment(end).output.is_dense:
            return f"the output of {end.path} is represented as it is"
    return first if fits(first, stream) else f"{first} mixes more than the {stream.unit} features it may"


def added(stream: Stream, kind: Literal["hadamard", "random"], seed: int) -> Representation | str:
    """The largest rotation that a stream can take: of all its features at once where they are one vector."""
    if stream.unit < 2:
        return "its tensors share no block of features"
    whole = stream.sizes == (stream.unit,)
    stage: Stage
    if kind == "random":
        stage = RandomRotation("full" if whole else stream.unit, seed)
    elif whole:
        stage = Hadamard("full", signs=seed)
        if stage.block_for(stream.unit) == 1:  # no matrix of that order: blocks of a power of two
            stage = Hadamard(_LARGEST, signs=seed)
    else:
        stage = Hadamard(max(stream.unit & -stream.unit, 2))
    rotation = Representation((stage,))
    return rotation if fits(rotation, stream) else f"{rotation} cannot rotate {stream.unit} features"


def fits(rotation: Representation, stream: Stream) -> bool:
    """Whether a rotation is the same on every tensor of a stream: equal blocks, whose size divides `unit`."""
    for stage in rotation.stages:
        try:
            for size in stream.sizes:
                stage.check((size,))
        except RequestError:
            return False
        blocks = {_block(stage, size) for size in stream.sizes}
        if len(blocks) > 1 or stream.unit % blocks.pop():
            return False
    return True


def stripped(given: Assignment, rotation: Representation) -> tuple[Representation, Representation]:
    """The chains of a weight and of its input without the rotation that they begin with."""
    count = len(rotation.stages)
    weight, inputs = (
        Representation(chain.stages[count:]) if chain.stages[:count] == rotation.stages else chain
        for chain in (given.weight, given.input)
    )
    return weight, inputs


def is_represented(node: fx.Node) -> bool:
    """Whether the node of a weight was given anything but dense."""
    return not (assigned(node) or DENSE).is_dense


def _assignment(end: End) -> Assignment:
    return assigned(end.site.weight) or DENSE


def _block(stage: Stage, size: int) -> int:
    """The size of the blocks that a rotation treats all alike; the whole where it does not."""
    if isinstance(stage, Hadamard) and stage.signs is None:
        return stage.block_for(size)
    return stage.block_for(size) if isinstance(stage, RandomRotation) else size
