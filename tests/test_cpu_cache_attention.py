"""Attention over packed caches in C++ on a CPU, held to the bytes of keys and values."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.generation.decoder import Decoder
from rhoc.runtime.generation.generate import generate
from rhoc.runtime.kernels import Call, Selection, select
from rhoc.runtime.kernels.cache_attention import DecodeCacheAttention
from rhoc.runtime.kernels.cpu import cache_attention as native
from rhoc.runtime.kernels.cpu.cache_attention import CpuCacheAttention
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Hadamard, Quantize, Sparsify

from .apart import survives
from .guarded import guarded
from .kernel_cases import BFLOAT16, FLOAT16, FLOAT32, Problem, assert_close_to_exact, grids
from .other_processors import compiled_without
from .test_generate import CHAINS, NEW, PROMPTS, decoder, paths
from .test_stored_matrix import by_hand

pytestmark = pytest.mark.compiled(by=native._library)
KERNEL, PLAIN = CpuCacheAttention(), DecodeCacheAttention()
DTYPES = (FLOAT32, BFLOAT16, FLOAT16)
E2M1 = {"type": "float", "strategy": "group", "group_size": 32}
STAGES = (
    *(Quantize(bits, strategy="token", grid=grid) for bits in range(1, 9) for grid in grids(bits)),
    *(Quantize(bits, strategy="token", symmetric=False) for bits in (2, 3, 4, 8)),
    *(Quantize(bits, strategy="group", group_size=20) for bits in (3, 4)),
    *(Quantize(bits, strategy="group", group_size=16, symmetric=False) for bits in (2, 5, 8)),
    *(Quantize(bits, strategy="group", group_size=64, symmetric=False) for bits in (4, 7)),
    Quantize(4, strategy="channel", scale_dtype="float16"),
    Quantize(4, strategy="group", group_size=32, symmetric=False, zp_dtype="float16", observer="hqq"),
    Quantize(4, strategy="group", group_size=16, scale_dtype="float8_e5m2"),
    Quantize(8, "float", strategy="token"),
    Quantize(6, "float", grid="e3m2", strategy="token"),
    Quantize(4, "float", grid="nf4", strategy="token"),
    Quantize(4, "float", grid="nf4", strategy="group", group_size=64),
    Quantize(4, observer="mx", **E2M1),  # type: ignore[arg-type]
)


@dataclass(frozen=True)
class Size:
    """B sequences of `slots`, H heads of the cache for `shared` of queries each, t `tokens`, D `features`."""

    sequences: int = 2
    heads: int = 2
    shared: int = 1
    tokens: int = 1
    features: int = 64
    slots: int = 150


# As many queries that the rounding of the largest score of one, which decides its error, is not what is compared.
SIZES = (
    Size(4, shared=3),
    Size(6, features=80, slots=67, heads=1, tokens=5),
    Size(12, features=20, slots=9, heads=1, shared=2, tokens=3),
    Size(1, 6, 4, 1, 128, 300),
    Size(3, features=32, slots=1),
    Size(1, 2, 2, 70, 64, 130),
)


def problem(stage: Quantize, size: Size, dtype: torch.dtype, factor: float = 2) -> Problem:
    """Queries that do not lie in a row, at places of their own, over slots of which some are empty."""
    generator = torch.Generator().manual_seed(size.features + size.slots)
    batch, heads, slots, features = size.sequences, size.heads, size.slots, size.features
    chain = Representation((stage,))
    cache = TokenCache(chain, (batch, heads, slots + 5, features), dtype, torch.device("cpu"))
    keys, values = torch.randn(2, batch, heads, slots, features, generator=generator).to(dtype)
    cache.append(keys, values, Places(torch.arange(slots).repeat(batch, 1), slots))
    positions = torch.randint(0, slots, (batch, size.tokens), generator=generator)
    positions[-1, -1] = slots - 1
    queries = torch.randn(batch, size.tokens, heads * size.shared, features, generator=generator)
    x = (factor * queries).to(dtype).transpose(1, 2)
    places = Places(positions, slots)
    sides = {kind: cache._used(which, places) for which, kind in enumerate(("keys", "values"))}
    matrix = stored_matrix(chain.core, (batch, heads, slots, 1, features))
    assert isinstance(matrix, StoredMatrix)
    dense = []
    for fields in sides.values():
        rows = {name: field.contiguous() for name, field in fields.items()}
        numbers = torch.from_numpy(by_hand(matrix, rows)).reshape(batch, heads, slots, features)
        dense.append(numbers.repeat_interleave(size.shared, 1))
    seen = torch.arange(slots) <= positions[:, None, :, None]
    exact = F.scaled_dot_product_attention(x.double(), *dense, attn_mask=seen)
    stored = {f"{kind}.{name}": t for kind, fields in sides.items() for name, t in fields.items()}
    stored["positions"] = positions
    return Problem(cache.call, x, stored, None, exact, PLAIN.run(cache.call, x, stored, None))


def check(given: Problem) -> None:
    assert KERNEL.refuse(given.call) is None
    assert_close_to_exact(KERNEL.run(given.call, given.x, given.stored, None), given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_it_is_as_good_as_the_plain_version(stage: Quantize, dtype: torch.dtype) -> None:
    for size in SIZES:
        check(problem(stage, size, dtype))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("stage", [STAGES[0], *STAGES[-5:]], ids=str)
def test_errors_of_many_slots_average_out(stage: Quantize, dtype: torch.dtype) -> None:
    check(problem(stage, Size(1, 4, slots=6000), dtype, 0.5))


def test_fields_that_do_not_lie_slot_by_slot() -> None:
    for stage in (STAGES[20], STAGES[-1]):
        given = problem(stage, SIZES[0], BFLOAT16)
        whole = KERNEL.run(given.call, given.x, given.stored, None)
        turned = {name: field.mT.contiguous().mT for name, field in given.stored.items()}
        assert torch.equal(KERNEL.run(given.call, given.x, turned, None), whole)
        apart = {name: field.transpose(0, 1).contiguous().transpose(0, 1) for name, field in turned.items()}
        assert torch.equal(KERNEL.run(given.call, given.x, apart, None), whole)


@pytest.mark.parametrize("factor", [1e-4, 40.0, 3e4])
def test_scores_far_apart(factor: float) -> None:
    """Shares that are all but nothing, and maxima that come late."""
    for dtype in (FLOAT32, BFLOAT16):
        check(problem(Quantize(8, strategy="token"), Size(slots=200), dtype, factor))


def test_what_is_not_a_number_stays_so() -> None:
    given = problem(Quantize(8, "float", strategy="token"), Size(1, 2), BFLOAT16)
    carry = given.stored["values.carry"].clone()
    carry[0, 1, 3] = 0x7F
    result = KERNEL.run(given.call, given.x, {**given.stored, "values.carry": carry}, None)
    assert result[:, 1].isnan().all()
    assert not result[:, 0].isnan().any()
    x = given.x.clone()
    x[:, 0] = torch.nan
    assert KERNEL.run(given.call, x, given.stored, None)[:, 0].isnan().all()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(three_threads: None) -> None:
    given = problem(Quantize(4, strategy="token"), Size(2, 2, 2, 150, 64, 160), BFLOAT16)
    several = KERNEL.run(given.call, given.x, given.stored, None)
    torch.set_num_threads(1)
    assert torch.equal(KERNEL.run(given.call, given.x, given.stored, None), several)
    assert_close_to_exact(several, given)


def test_gradients_take_the_way_that_has_them() -> None:
    given = problem(Quantize(8, strategy="token"), Size(), FLOAT32)
    x = given.x.clone().requires_grad_()
    KERNEL.run(given.call, x, given.stored, None).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("name", sorted(CHAINS))
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_tokens_are_those_of_the_decode_way(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(FLOAT32).to(dtype)
    caches = dict.fromkeys(paths(model), CHAINS[name])
    found = generate(Decoder(model, caches), PROMPTS, NEW)
    runs = []

    def decoding(call: Call) -> Selection:
        runs.append(select(call).kernel.name)
        return Selection(PLAIN, ())

    monkeypatch.setattr("rhoc.runtime.generation.cache.select", decoding)
    expected = generate(Decoder(model, caches), PROMPTS, NEW)
    assert set(runs) == {PLAIN.name if name in ("2:4", "codebook") else KERNEL.name}
    if dtype == FLOAT32:
        assert found.tokens == expected.tokens
    assert found.cache_bytes == expected.cache_bytes


REFUSALS = (
    (Representation(), {}, "keys and values are not coded"),
    (Representation((Quantize(8),)), {}, "tokens do not have scales of their own"),
    (
        Representation((Sparsify(sparsity_structure="2:4"), Quantize(8, strategy="token"))),
        {},
        "keys and values are sparse",
    ),
    (
        Representation((Codebook(2, nbits_per_codebook=4, source="gaussian", strategy="channel"),)),
        {},
        "is not one quantize stage, alone or after sparsify",
    ),
    (
        Representation((Hadamard(16), Quantize(8, strategy="token"))),
        {"dtype": torch.float64},
        "inputs are float64, not float32, bfloat16 or float16",
    ),
)


@pytest.mark.parametrize(("chain", "changes", "reason"), REFUSALS, ids=lambda value: str(value)[:40])
def test_refusals(chain: Representation, changes: dict[str, torch.dtype], reason: str) -> None:
    call = replace(Call("cache_attention", chain.core, (2, 64), FLOAT32, "cpu"), **changes)  # type: ignore[arg-type]
    found = KERNEL.refuse(call)
    assert found is not None
    assert found.endswith(reason)
    selection = select(call)
    assert selection.kernel.name == PLAIN.name
    assert [refusal.reason for refusal in selection.refusals if refusal.kernel == KERNEL.name] == [found]


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="flags of GCC and Clang for x86")
@pytest.mark.parametrize("without", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx2", "-mno-avx"])
def test_other_instructions(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processors: what is left when the compiler may not use some of this one's instructions."""
    if os.uname().machine != "x86_64":
        pytest.skip("the flag is one of x86")
    library = native.bound(compiled_without(native.SOURCES, without))
    assert isinstance(library, ctypes.CDLL), library
    monkeypatch.setattr(native, "_library", lambda: library)
    for stage in STAGES[::3]:
        for dtype in (FLOAT32, BFLOAT16):
            for size in SIZES[:3]:
                check(problem(stage, size, dtype))


def _read_to_the_end() -> None:
    for bits in (1, 3, 4, 8):
        for features, group in ((64, None), (20, None), (100, 20), (128, 64)):
            stage = Quantize(bits, strategy="group" if group else "token", group_size=group)
            for symmetric in (True, False)[: 1 if bits == 1 else 2]:
                for dtype in (FLOAT32, BFLOAT16):
                    size = Size(1, 2, 1, 2, features, 66)
                    given = problem(replace(stage, symmetric=symmetric), size, dtype)
                    whole = {name: guarded(field.contiguous()) for name, field in given.stored.items()}
                    result = KERNEL.run(given.call, given.x, whole, None)
                    assert torch.equal(result, KERNEL.run(given.call, given.x, given.stored, None))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")
def test_nothing_past_the_end_is_read() -> None:
    """In a process of its own, which would not survive it: a page that may not be read follows each field."""
    assert survives(_read_to_the_end)


def test_without_a_compiler_blocks_are_decoded() -> None:
    code = (
        "import torch; from rhoc.runtime.kernels import Call, select; from rhoc.runtime.stages import Quantize;"
        "from rhoc.runtime.representation import Representation;"
        "r = Representation((Quantize(8, strategy='token'),)).core;"
        "s = select(Call('cache_attention', r, (2, 64), torch.float32, 'cpu'));"
        "print(s.kernel.name, *s.refusals, sep='; ')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "RHOC_NATIVE": "0"},
        check=True,
    ).stdout
    assert printed.startswith("decode_cache_attention; ")
    assert "cpu_cache_attention refused: RHOC_NATIVE=0 switches it off" in printed
