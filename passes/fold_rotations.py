"""Move rotations out of the chains of weights and into the weights around them, where they cost nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import fx

from ..runtime.representation import Representation
from ..runtime.schedule import Schedule
from .assignment import DENSE, Assignment, assign, assigned
from .base import Broken, Fact, Keeps, Pass
from .centre import centre, why_not_centred
from .facts import ASSIGNED
from .fold_norms import NORMS_FOLDED
from .raise_norms import RAISED
from .reach import Reach, note, reaches
from .rotation_choice import added, begun, is_represented, stripped
from .sites import sites
from .streams import Stream, streams
from .turn import rotate

_SHOWN = 3  # paths that a line names


def _folded(gm: fx.GraphModule) -> None:
    """What lies in a stream that was rotated does not begin with a rotation that the stream could take."""
    paths = {reach.path for reach in reaches(gm).get("FoldRotations", ()) if reach.reached}
    for stream in streams(gm) if paths else ():
        again = begun(stream)
        if not isinstance(again, str) and any(end.path in paths for end in stream.readers):
            raise Broken(f"{again} was folded and is online again", at=stream.readers[0].path)


ROTATIONS_FOLDED = Fact("rotations folded", _folded)


@dataclass(frozen=True)
class FoldRotations(Pass):
    """Where all that is represented along a residual stream begins with one rotation, the stream itself is
    rotated and the chains lose that stage: the same codes, and nothing left to compute (QuaRot, 2404.00456,
    section 4; SpinQuant, 2405.16406, section 3.1). The same holds for the values of attention, head by head.

    `add` rotates every stream that can be, as a whole by a Hadamard matrix with random signs or by a random
    rotation from `seed`, also where chains begin with none; chains stay as they are and see rotated weights.

    Layer norms in a stream that is rotated are exchanged for RMS norms with the same keys, after what writes
    the stream was centred. Dropout on the stream acts in the rotated basis when the model is trained, and
    training can give the stream a mean again, which the exchanged norms do not take out.
    """

    add: Literal["none", "hadamard", "random"] = "none"
    seed: int = 0
    kind: Literal["fold_rotations"] = "fold_rotations"

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED, RAISED, NORMS_FOLDED})
    establishes: ClassVar[frozenset[Fact]] = frozenset({ROTATIONS_FOLDED})
    keeps: ClassVar[Keeps] = "values"

    def __post_init__(self) -> None:
        if self.add not in ("none", "hadamard", "random"):
            raise ValueError(f"add is 'none', 'hadamard' or 'random', got {self.add!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 up, got {self.seed}")

    def rewrite(self, gm: fx.GraphModule) -> bool:
        found: dict[str, Reach] = {}
        changed = False
        for stream in self.streams(gm):
            if not any(is_represented(end.site.weight) for end in stream.ends):
                continue
            rotation = self.rotation(gm, stream)
            if isinstance(rotation, str):
                found |= {reach.path: reach for reach in _online(stream, rotation)}
                continue
            found |= {reach.path: reach for reach in self._fold(gm, stream, rotation)}
            changed = True
        note(gm, self.name, [*found.values(), *_elsewhere(gm, found)])
        return changed

    def streams(self, gm: fx.GraphModule) -> Iterable[Stream]:
        """What is rotated as one."""
        return streams(gm)

    def rotation(self, gm: fx.GraphModule, stream: Stream) -> Representation | str:
        """The rotation that a stream takes, or why it takes none."""
        chosen = begun(stream)
        if isinstance(chosen, str) and self.add != "none":
            chosen = added(stream, self.add, self.seed)
        if isinstance(chosen, str):
            return chosen
        if stream.barriers:
            return stream.barriers[0]
        return (why_not_centred(gm, stream) if stream.norms else None) or chosen

    def _fold(self, gm: fx.GraphModule, stream: Stream, rotation: Representation) -> list[Reach]:
        strips = begun(stream) == rotation
        if stream.norms:
            centre(gm, stream)
        rotate(gm, stream, rotation)
        found = []
        for end in stream.ends:
            given = assigned(end.site.weight) or DENSE
            if end.side == "columns" and not given.is_dense:
                found.append(Reach(end.path, True, _what(stream, rotation, strips)))
                if strips:
                    weight, inputs = stripped(given, rotation)
                    schedules = _moved(given, weight, inputs)
                    stripped_of = replace(given, weight=weight, input=inputs, schedules=schedules)
                    assign(end.site.weight, stripped_of)
        return found


def _moved(given: Assignment, weight: Representation, inputs: Representation) -> tuple[Schedule, ...]:
    """The schedules of chains that lost their first stages: positions count from what is left."""
    schedules = given.schedules
    for slot, before, after in (
        ("weights", given.weight, weight),
        ("input_activations", given.input, inputs),
    ):
        schedules = tuple(s.moved(slot, len(after.stages) - len(before.stages)) for s in schedules)
    return schedules


def _what(stream: Stream, rotation: Representation, strips: bool) -> str:
    paths = list(
        dict.fromkeys([*(end.path for end in stream.writers), *(str(n.target) for n in stream.added)])
    )
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    into = f"folded into {', '.join(paths[:_SHOWN])}{more}"
    return f"{rotation} {into if strips else 'added and ' + into}"


def _online(stream: Stream, why: str) -> list[Reach]:
    """What stays as it was: each represented weight along the stream."""
    return [
        Reach(end.path, False, f"stays online: {why}" if _rotates(end.site.weight) else why)
        for end in stream.ends
        if end.side == "columns" and is_represented(end.site.weight)
    ]


def _elsewhere(gm: fx.GraphModule, found: dict[str, Reach]) -> list[Reach]:
    """Represented weights that read no stream at all."""
    rest = {site.path: site for site in sites(gm) if site.path not in found and is_represented(site.weight)}
    return [
        Reach(
            path,
            False,
            f"{'stays online: ' if _rotates(site.weight) else ''}{site.operation.name} is in no stream",
        )
        for path, site in rest.items()
    ]


def _rotates(weight: fx.Node) -> bool:
    given = assigned(weight) or DENSE
    return bool(given.weight.rotation.stages or given.input.rotation.stages)
