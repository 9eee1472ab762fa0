"""Banks: one step (and offset) of an input for each value of an index that the model is called with.

The activations of a diffusion model differ by time step. A bank holds the parameters of T quantisers, and a
batch of mixed time steps is gathered by index and projected in one call: the temporal parallel quantiser of
DilateQuant (Liu et al., arXiv 2409.14307, Eq. 13 and 14). The index is an argument of the model's forward, by
name; `give_index` has a model tell it to whatever of it projects inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import RequestError
from .program import program_of, program_of_key
from .representation import Representation
from .stages.given_steps import GivenSteps
from .stages.quantize import Quantize


@dataclass(frozen=True)
class Bank:
    """Steps of inputs by an index.

    `index` is the name of the argument of the model's forward that holds the index: whole numbers from 0, one
    for each sample or one for all.
    `size` is how many values it has.
    """

    index: str
    size: int

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.index.isidentifier():
            raise ValueError(f"index {self.index!r} is no name of an argument; write for example index: t")
        if self.size < 1:
            raise ValueError(f"size {self.size} must be at least 1; it is the number of values of the index")

    def rows(self, x: Tensor) -> Tensor:
        """The index of each sample of an input `[B, ...]`: int64 `[B]`.

        Raises RequestError when the model was called without it, or it does not fit the input.
        """
        given = (_told() or _Given({})).values.get(self.index)
        if given is None:
            raise RequestError(
                f"inputs are quantised by {self.index!r}, and nothing said what it is",
                where="bank",
                advice="call the whole model; its modules alone do not know",
            )
        return rows_of(torch.as_tensor(given, device=x.device), self, x)


def rows_of(given: Tensor, bank: Bank, x: Tensor) -> Tensor:
    """`Bank.rows` for an index at hand."""
    rows = given.reshape(-1).long()
    if rows.numel() == 1:
        rows = rows.expand(x.shape[0])
    if rows.numel() != x.shape[0]:
        raise RequestError(
            f"{bank.index!r} has {rows.numel()} numbers, and an input is {list(x.shape)}",
            where="bank",
            advice="give one number for each sample, and inputs with the samples first",
        )
    if not torch.compiler.is_compiling() and rows.numel():
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= bank.size:
            raise RequestError(
                f"{bank.index!r} is {low if low < 0 else high}, and the bank has rows 0 to {bank.size - 1}",
                where="bank",
                advice="give size: the number of values of the index",
            )
    return rows


@dataclass(frozen=True)
class Rows:
    """A bank with its numbers: `steps`, and `offsets` or none, one for each value of the index.

    `representation` is a grid with one scale for a whole tensor: of each sample here. `key` is by what
    operators find that grid again in this process.
    """

    representation: Representation
    bank: Bank
    steps: tuple[float, ...]
    offsets: tuple[float, ...] = ()
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = program_of(Representation((by_sample(self.representation),))).key
        object.__setattr__(self, "key", key)  # torch.compile reads it, and cannot trace what it follows from

    def project(self, x: Tensor) -> Tensor:
        """Every sample of an input `[B, ...]` under its own step and offset."""
        rows = self.bank.rows(x)
        run = _PROJECT_ROWS if torch.compiler.is_compiling() else _project_rows
        result: Tensor = run(x.reshape(x.shape[0], -1), rows, list(self.steps), list(self.offsets), self.key)
        return result.reshape(x.shape)

    def along(self, x: Tensor, dimension: int) -> Tensor:
        """The same: what shares a step has no direction."""
        return self.project(x)

    @property
    def nbytes(self) -> int:
        """Stored bytes: float32 each."""
        return 4 * (len(self.steps) + len(self.offsets))


def _project_rows(
    x: Tensor, rows: Tensor, steps: Sequence[float], offsets: Sequence[float], key: str
) -> Tensor:
    """Samples `[B, n]` under the steps and offsets of their rows; `key` is of the grid of `by_sample`."""
    (stage,) = program_of_key(key).representation.stages
    assert isinstance(stage, Quantize)
    taken = [torch.tensor(each, device=x.device)[rows] for each in (steps, offsets) if each]
    given = GivenSteps(stage, tuple(x.shape), x.dtype, *taken)
    return given.project(x).to(x.dtype)


_PROJECT_ROWS = torch.library.custom_op("rhoc::project_rows", _project_rows, mutates_args=())
_PROJECT_ROWS.register_fake(lambda x, rows, steps, offsets, key: torch.empty_like(x))


class ProjectRows(nn.Module):
    """`Rows.project` as a module without state, so that a graph can call it and print its name."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    @property
    def key(self) -> Hashable:
        """What it does: modules with equal keys do the same."""
        return self.rows

    def forward(self, x: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype."""
        return self.rows.project(x)

    def extra_repr(self) -> str:
        return f"{self.rows.representation}, {self.rows.bank.size} by {self.rows.bank.index}"


def by_sample(representation: Representation) -> Quantize:
    """The grid of a representation with a step for each row of a matrix instead of one for all."""
    (stage,) = representation.stages
    assert isinstance(stage, Quantize)
    return replace(stage, strategy="channel")


def bank_fault(representation: Representation) -> str:
    """Why a bank cannot hold the parameters of a representation, or nothing."""
    stages = representation.stages
    if len(stages) != 1 or not isinstance(stages[0], Quantize):
        return f"a bank holds the steps of one grid, and {representation} is something else"
    if stages[0].strategy != "tensor" or stages[0].step is not None:
        return "a bank holds a step for a whole tensor: strategy: tensor, without a step that is given"
    return ""


def nearest_known(values: Tensor) -> Tensor:
    """For each of `[T]` numbers the place of the nearest one that is not NaN, the lower of two; int64 `[T]`.

    Its own place for all where all are NaN.
    """
    places = torch.arange(len(values), device=values.device)
    known = places[~values.isnan()]
    if not known.numel():
        return places
    found: Tensor = known[(places[:, None] - known[None]).abs().argmin(1)]
    return found


@dataclass(frozen=True)
class _Given:
    """What the models that are running were called with, the innermost first."""

    values: Mapping[str, Any]
    before: _Given | None = None


_GIVEN: ContextVar[_Given | None] = ContextVar("index", default=None)


class _Traced:
    """In the place of the variable while torch.compile traces, which follows attributes and no context. What
    a model says is taken back before its trace ends, so that nothing is left here."""

    def __init__(self) -> None:
        self.given: _Given | None = None


_TRACED = _Traced()


def _told() -> _Given | None:
    return _TRACED.given if torch.compiler.is_compiling() else _GIVEN.get()


def _tell(given: _Given | None) -> None:
    if torch.compiler.is_compiling():
        _TRACED.given = given
    else:
        _GIVEN.set(given)


class _Enter:
    """A hook that says what a model was called with; an object, so that copies of a model have their own."""

    def __init__(self, signature: inspect.Signature, names: frozenset[str]) -> None:
        self.signature, self.names = signature, names

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {name: value for name, value in bound.arguments.items() if name in self.names}
        _tell(_Given(values, _told()))


class _Leave:
    """A hook that takes back what `_Enter` said, whatever became of the call."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        given = _told()
        _tell(None if given is None else given.before)


def give_index(model: nn.Module, original: nn.Module, names: Iterable[str]) -> nn.Module:
    """Have a model tell its banks the arguments of these names whenever it is called; itself.

    `original` is the model as the user wrote it, which has the signature. Errors as for `signature_with`.
    """
    wanted = frozenset(names)
    if wanted:
        enter = _Enter(signature_with(original, wanted), wanted)
        model.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        model.register_forward_hook(_Leave(), always_call=True)
    return model


@contextmanager
def called_with(original: nn.Module, names: Iterable[str], args: tuple[Any, ...]) -> Iterator[None]:
    """Banks inside take the arguments of these names as if `original` were called with `args`.

    Errors as for `signature_with`.
    """
    wanted = frozenset(names)
    _Enter(signature_with(original, wanted), wanted)(original, args, {})
    try:
        yield
    finally:
        _Leave()(original, args, None)


def signature_with(original: nn.Module, names: Iterable[str]) -> inspect.Signature:
    """What a model is called with. Raises RequestError when its forward has no argument of a name."""
    signature = inspect.signature(original.forward)
    for name in sorted(names):
        if name not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise RequestError(
                f"the model's forward has no argument {name!r}; it has {known}",
                where="bank",
                advice="index is the name of an argument of the model's forward",
            )
    return signature
