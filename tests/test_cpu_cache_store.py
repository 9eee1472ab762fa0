"""Tokens that C++ encodes into their slots, held to the bytes that the stage gives."""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from rhoc.runtime.errors import RequestError
from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.kernels.cpu import cache_store as native
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Hadamard, Quantize, Sparsify

from .kernel_cases import BFLOAT16, FLOAT16, FLOAT32, grids
from .other_processors import compiled_without

pytestmark = pytest.mark.skipif(
    isinstance(native.bound(native.SOURCES), str), reason="there is no C++ compiler"
)
DTYPES = (FLOAT32, BFLOAT16, FLOAT16)
BATCH, HEADS, SLOTS, TOKENS = 2, 3, 9, 4
SHARED: tuple[dict[str, object], ...] = (
    {"strategy": "token"},
    {"strategy": "group", "group_size": 16},
    {"strategy": "group", "group_size": 20},
)
STAGES = (
    *(Quantize(bits, grid=grid, **SHARED[0]) for bits in range(1, 9) for grid in grids(bits)),  # type: ignore[arg-type]
    *(
        Quantize(bits, symmetric=False, **shared)  # type: ignore[arg-type]
        for bits, shared in product(range(2, 9), SHARED)
    ),
    *(
        Quantize(bits, "float", grid=grid, **shared)  # type: ignore[arg-type]
        for (bits, grid), shared in product(
            ((8, None), (8, "e5m2"), (6, "e3m2"), (4, None), (4, "nf4"), (3, "log")), SHARED
        )
    ),
    *(
        Quantize(bits, scale_dtype=dtype, **SHARED[1])  # type: ignore[arg-type]
        for bits, dtype in product((4, 8), ("float32", "float16", "bfloat16"))
    ),
    *(Quantize(4, absmax_rule=rule, strategy="channel") for rule in ("full", "sym")),  # type: ignore[arg-type]
)
# beside ordinary numbers: zeros of both signs, the smallest and the largest there are, equal ones, ties
UNUSUAL = (
    "zeros",
    "minus zeros",
    "smallest",
    "largest",
    "equal",
    "one alone",
    "ties",
    "positive",
    "negative",
)


def numbers(dtype: torch.dtype, features: int, seed: int = 0) -> Tensor:
    """Keys or values `[B, H, t, D]` of every kind, with a scale for each token that goes from 1e-6 to 1e4."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, HEADS, TOKENS, features, generator=generator)
    x *= torch.logspace(-6, 4, BATCH * HEADS * TOKENS).reshape(BATCH, HEADS, TOKENS, 1)
    info = torch.finfo(dtype)
    rows = x.flatten(0, 2)
    for row, kind in enumerate(UNUSUAL):
        signs = rows[row].sign()
        rows[row] = {
            "zeros": torch.zeros(features),
            "minus zeros": -torch.zeros(features),
            "smallest": signs * info.smallest_normal * info.eps,
            "largest": signs * info.max,
            "equal": torch.full((features,), 0.3),
            "one alone": torch.zeros(features).index_fill_(0, torch.tensor([features - 2]), -7.5),
            "ties": torch.arange(features) % 33 / 2 - 8,
            "positive": rows[row].abs(),
            "negative": -rows[row].abs(),
        }[kind]
    return x.to(dtype)


def cache(chain: Representation, features: int, dtype: torch.dtype) -> TokenCache:
    return TokenCache(chain, (BATCH, HEADS, SLOTS, features), dtype, torch.device("cpu"))


def by_the_stage(of: TokenCache, monkeypatch: pytest.MonkeyPatch) -> TokenCache:
    """The same cache, with nothing in it, that does without C++."""
    other = copy.deepcopy(of)
    monkeypatch.setattr(other._on_processor, "_storing", [])
    return other


def equal(found: TokenCache, expected: TokenCache) -> None:
    for name, tensor in expected._fields.items():
        assert torch.equal(found._fields[name].view(torch.uint8), tensor.view(torch.uint8)), name


def check(chain: Representation, features: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cache(chain, features, dtype)
    expected = by_the_stage(found, monkeypatch)
    keys = numbers(dtype, features)
    values = numbers(dtype, features, 1).transpose(1, 2).contiguous().transpose(1, 2)
    scattered = torch.tensor([[3, 0, 5, 2], [8, 7, 1, 4]])
    stored = []
    for places in (Places(scattered, 9), Places(torch.arange(4, 8).repeat(BATCH, 1), 8, last=True)):
        stored.append(found._on_processor.store(keys, values, places))
        expected.append(keys, values, places)
        equal(found, expected)
        keys, values = values, keys
    assert stored == [True, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_what_is_stored_is_what_the_stage_gives(
    stage: Quantize, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for features in (64, 50):
        check(Representation((stage,)), features, dtype, monkeypatch)


def test_rotated_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Representation((Hadamard(16), Quantize(4, strategy="token")))
    found = cache(chain, 64, FLOAT32)
    expected, runs = by_the_stage(found, monkeypatch), []
    natively = found._on_processor
    store = natively.store
    monkeypatch.setattr(natively, "store", lambda *given: runs.append(store(*given)) or runs[-1])
    places = Places(torch.arange(4).repeat(BATCH, 1), 4, last=True)
    for each in (found, expected):
        each.append(numbers(FLOAT32, 64).clamp(-1e4, 1e4), numbers(FLOAT32, 64, 1).clamp(-1e4, 1e4), places)
    assert runs == [True]
    equal(found, expected)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_that_are_not_finite(wrong: float, dtype: torch.dtype, symmetric: bool) -> None:
    """The stage refuses them, and so what writes in its place leaves them to it."""
    chain = Representation((Quantize(4, strategy="group", group_size=16, symmetric=symmetric),))
    found, keys, values = cache(chain, 50, dtype), numbers(dtype, 50), numbers(dtype, 50, 1)
    for x in (keys, values):
        kept = x.clone()
        x[1, 2, 3, 49] = wrong
        places = Places(torch.arange(4).repeat(BATCH, 1), 4, last=True)
        assert not found._on_processor.store(keys, values, places)
        with pytest.raises(RequestError, match="1 of 2400 numbers are NaN or infinite"):
            found.append(keys, values, places)
        x.copy_(kept)


def test_slots_that_are_not_there() -> None:
    found, x = cache(Representation((Quantize(8, strategy="token"),)), 64, FLOAT32), numbers(FLOAT32, 64)
    for places in (
        Places(torch.tensor([[0, 1, 2, 9]] * BATCH), 9),
        Places(torch.tensor([[0, 1, 2, -1]] * BATCH), 9),
        Places(torch.arange(7, 11).repeat(BATCH, 1), 11, last=True),
        Places(torch.arange(4).repeat(BATCH, 1), 2, last=True),
    ):
        assert not found._on_processor.store(x, x, places)


def test_tensors_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cache(Representation((Quantize(8, strategy="token"),)), 64, FLOAT32)
    places = Places(torch.arange(4).repeat(BATCH, 1), 4, last=True)
    x = numbers(FLOAT32, 64)
    assert not found._on_processor.store(x.clamp(-9, 9).bfloat16(), x, places)
    assert not found._on_processor.store(x, x[:, :1], places)
    assert not found._on_processor.store(x.clone().requires_grad_(), x, places)
    apart = x.mT.contiguous().mT
    assert found._on_processor.store(apart, x, places)
    expected = by_the_stage(found, monkeypatch)
    expected.append(x, x, places)
    equal(found, expected)


def test_copies_have_slots_of_their_own() -> None:
    found = cache(Representation((Quantize(8, strategy="token"),)), 64, FLOAT32)
    x, places = numbers(FLOAT32, 64), Places(torch.arange(4).repeat(BATCH, 1), 4, last=True)
    found.append(x, x, places)
    other = copy.deepcopy(found)
    equal(other, found)
    found.append(x + 1, x, places)
    assert not torch.equal(found._fields["carry"], other._fields["carry"])
    other.append(x + 1, x, places)
    equal(other, found)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhoc.runtime.native.threads.MANY", 1)
    check(Representation((STAGES[-1],)), 64, BFLOAT16, monkeypatch)


REFUSED = (
    (Representation(), FLOAT32, "is not one quantize stage"),
    (
        Representation((Codebook(2, nbits_per_codebook=4, source="gaussian", strategy="channel"),)),
        FLOAT32,
        "one",
    ),
    (Representation((Sparsify(sparsity_structure="2:4"),)), FLOAT32, "is not one quantize stage"),
    (Representation((Quantize(8, strategy="token"),)), torch.float64, "numbers are float64"),
    (Representation((Quantize(8, strategy="token", observer="rms"),)), FLOAT32, "observer of"),
    (Representation((Quantize(4, strategy="token", absmax_rule="signed"),)), FLOAT32, "are not plain floats"),
    (
        Representation((Quantize(4, strategy="group", group_size=16, scale_dtype="float8_e5m2"),)),
        FLOAT32,
        "scales are stored as float8_e5m2",
    ),
    (
        Representation((Quantize(4, strategy="token", symmetric=False, zp_dtype="float16"),)),
        FLOAT32,
        "zp_dtype of",
    ),
)


@pytest.mark.parametrize(("chain", "dtype", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_refusals(chain: Representation, dtype: torch.dtype, reason: str) -> None:
    fields = cache(chain, 64, dtype)._on_processor._sides[0]
    found = native.storing(chain, fields, 64, dtype)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="flags of GCC and Clang for x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx2", "-mno-avx"])
def test_other_instructions(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the flag is one of x86")
    library = native.bound(compiled_without(native.SOURCES, without))
    assert isinstance(library, ctypes.CDLL), library
    monkeypatch.setattr(native, "_library", lambda: library)
    for stage, dtype in zip(STAGES[::3], DTYPES * len(STAGES), strict=False):
        check(Representation((stage,)), 50, dtype, monkeypatch)


def test_without_a_compiler_the_stage_encodes() -> None:
    code = (
        "import torch; from rhoc.runtime.generation.cache import Places, TokenCache;"
        "from rhoc.runtime.representation import Representation; from rhoc.runtime.stages import Quantize;"
        "c = TokenCache(Representation((Quantize(8, strategy='token'),)), (1, 1, 2, 8), torch.float32,"
        " torch.device('cpu')); c.append(torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8),"
        " Places(torch.zeros(1, 1, dtype=torch.int64), 1, last=True)); print(c._fields['carry'][:, 0, 0, 0])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "RHOC_NATIVE": "0"},
        check=True,
    ).stdout
    assert printed.startswith("tensor([[[255, 255")
