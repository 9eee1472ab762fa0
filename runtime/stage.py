"""The contract of a stage: one step from a dense tensor towards stored bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .gaussian import Source
from .text import Token, stage_text

Fields = dict[str, Tensor]

CARRY = "carry"

HandsOn = Literal["numbers", "codes", "nothing"]


@dataclass(frozen=True)
class Cell:
    """The geometry of a grid on one tensor, as estimators need it. Both tensors broadcast to the carry."""

    half_width: Tensor  # half the distance between the two neighbouring levels that lie farthest apart
    outermost: Tensor  # the largest level
    num_levels: int


@dataclass(frozen=True)
class Sphere:
    """How far vectors reach on one tensor `[..., n]`, as estimators need it.

    `size` neighbours along the last dimension are a vector, the last one of a row filled up with zeros. Norms
    are those of numbers over `scale`, which broadcasts to the tensor; they broadcast to
    `[..., ceil(n / size)]`.
    """

    size: int
    scale: Tensor
    outermost: Tensor  # the largest norm of a vector that can be stored
    reach: Tensor  # half its distance from the nearest other one


@dataclass(frozen=True)
class Sized:
    """A tensor's shape and dtype, without the tensor.

    `variable`: the last dimension depends on the numbers (entropy-coded bytes), and the shape given is that
    expected for Gaussian ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    variable: bool = False


class Stage(ABC):
    """One step from a dense tensor towards stored bits; a frozen dataclass in a file of its own.

    `encode` returns the tensor that the next stage continues with (the carry) and the fields this stage must
    keep to undo itself; `decode` is its inverse on that image. Both work on meta tensors, so that layouts are
    known before anything is computed. All else that is known of a representation is derived from these two.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    kind: str

    tags: ClassVar[frozenset[str]] = frozenset()
    """What passes may rely on: 'orthogonal' (may move across a matmul), 'elementwise' (a number's place is
    kept and no other number is mixed in), 'sparse' (hands on a part of the values, the rest decode to zero),
    'lossless' (decode undoes encode, but for rounding), 'idempotent' (projecting twice is projecting
    once)."""

    family: ClassVar[str] = ""
    """The compression family whose constants turn its Gaussian error into rho: 'scalar', 'sparse', 'vector';
    empty where none is known."""

    @property
    def hands_on(self) -> HandsOn:
        """What a next stage would be given: numbers; integer codes, which no stage takes; or nothing, when
        all is in the fields (the carry is then an empty tensor `[0, *shape]`, which is not stored)."""
        return "codes" if CARRY in self.widths() else "numbers"

    @property
    def scale_free(self) -> bool:
        """Whether c x projects to c times the projection of x, for every c > 0, but for rounding.

        Scales that are powers of two make it false; the Gaussian error is then a mean over an octave of c.
        """
        return True

    @property
    def random(self) -> bool:
        """Whether its projection may be bound to random numbers, chains inside it left aside."""
        return False

    def drawn(self, seed: int) -> Stage:
        """This stage with what is random in it bound to a seed (0 up to 2^63): the same for the same seed.

        A stage that is not bound is deterministic: so are its codes, and all that is packed.
        """
        return self

    @property
    def unwrapped(self) -> tuple[Stage, ...]:
        """The stages that do its work: itself, or those that it only stores in another way."""
        return (self,)

    @property
    def named(self) -> Stage:
        """This stage with what it shares with others as a name alone: enough to decode."""
        return self

    @property
    def shared_names(self) -> tuple[str, ...]:
        """What each of `shared_fields` is called wherever it is the same one; '' where it was not fitted."""
        return ()

    @property
    def shared_fields(self) -> tuple[str, ...]:
        """How the names of fields begin that several tensors have in common: stored, and counted, once."""
        return ()

    @property
    def sample_rows(self) -> int:
        """Rows of 4096 numbers that its Gaussian error is estimated on at a time; more for what is fitted to
        the tensor, which fits a small one too well."""
        return 64

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `RequestError` when a tensor of this shape cannot be encoded."""
        return

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        """Tensor to (carry, fields)."""

    @abstractmethod
    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        """(carry, fields) back to the tensor."""

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        """`encode` where errors count by `importance` (positive, broadcasts to `x`; from calibration).

        The third result is the importance of what is handed on, None where it has no meaning. A stage that
        chooses (what to keep, which scale, which factor) overrides this; others encode as ever.
        """
        carry, fields = self.encode(x)
        return carry, fields, importance if "elementwise" in self.tags else None

    def hand_on(self, x: Tensor) -> tuple[Tensor, Fields]:
        """`encode` on the way of a projection: the same carry, with fields that are never stored.

        They need be nothing but what `decode`, `cell` and `kept` read, in the form that is made the fastest.
        """
        return self.encode(x)

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        """`decode(encode(x))` bit for bit where x is not NaN, with the fields that `cell` and `kept` read.

        A stage overrides this when there is a shorter way, one that makes no codes.
        """
        carry, fields = self.encode(x)
        return self.decode(carry, fields), fields

    def kept(self, fields: Fields) -> Tensor | None:
        """Bool of the decoded shape, false where zeros were filled in; None when the stage fills in none."""
        return None

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        """Shapes and dtypes of what `encode` gives for such a tensor: the carry and the fields.

        Derived from `encode` on meta tensors. A stage may say it by arithmetic instead, which spares a
        process the second or two that torch takes to load what meta tensors need.
        """
        carry, fields = self.encode(torch.empty(x.shape, dtype=x.dtype, device="meta"))
        return _sized(carry), {name: _sized(field) for name, field in fields.items()}

    def widths(self) -> Mapping[str, int]:
        """Stored bits per element of integer fields, by name; 'carry' is what is handed on.

        Codes of up to 8 bits are uint8 (bool for one), wider ones int32. Fields not named here are stored in
        their own dtype.
        """
        return {}

    def bound(self, source: Source) -> Stage:
        """This stage with every choice made that depends on what it is handed for Gaussian input."""
        return self

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        """This stage with what several tensors share fitted to all of them; they are what it is handed.

        Raises RequestError where a stage holds something to share that it cannot fit.
        """
        return self

    def resized(self, rows: int, columns: int) -> Stage:
        """This stage as it should be on `[rows, columns]` to lose there what it loses on a reference matrix.

        A stage with a size that grows with the tensor's (a rank) overrides it; see `REFERENCE_SHAPE`.
        """
        return self

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Quadrature: (what is handed on, squared error added) for the Gaussian values in `source`.

        None when the stage is not separable; then the error of the whole chain is estimated by Monte Carlo.
        """
        return None

    def gaussian_at(self, deviation: float) -> float | None:
        """Quadrature: relative squared error on plain Gaussian numbers of a standard deviation.

        For stages that are not scale free; None where it is not known.
        """
        return None

    def cell(self, fields: Fields) -> Cell | None:
        """The grid's geometry on an encoded tensor; None for a stage without a grid."""
        return None

    def sphere(self, fields: Fields, x: Tensor) -> Sphere | None:
        """The geometry of vectors on the tensor that was encoded; None for a stage without vectors."""
        return None

    def __str__(self) -> str:
        """Text form, `kind(arguments)`; see `text`."""
        return stage_text(self)

    @classmethod
    def from_tokens(cls, tokens: list[Token]) -> Stage:
        """The stage that the arguments of a text form describe. Raises ValueError."""
        from .text_parser import options_from  # reads nested chains, and so needs every stage

        return cls(**options_from(cls, tokens))


def _sized(tensor: Tensor) -> Sized:
    return Sized(tuple(tensor.shape), tensor.dtype)
