"""Codes as bytes under frequencies that both sides know: they come back, and are as long as they must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rhoc.runtime.codec import Codec, ProjectCodec, codecs, compress
from rhoc.runtime.coded_bytes import frequencies_of
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.text_parser import from_text
from rhoc.runtime.vector_levels import levels_of

pytestmark = pytest.mark.usefixtures("one_thread")


def usage_of(books: int, bits: int, seed: int) -> Tensor:
    """Shares of vectors, uneven ones, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(books, 1 << bits, generator=generator) ** 4
    drawn = torch.where(torch.rand(drawn.shape, generator=generator) < 1 / 3, 0.0, drawn)
    drawn[:, 0] += 0.01
    return drawn / drawn.sum(1, keepdim=True)


def codec(bits: int = 4, seed: int = 0, text: str = "") -> Codec:
    text = text or f"codebook(4, num_codebooks=2, product, nbits_per_codebook={bits})"
    levels = levels_of(from_text(text))
    usage = [usage_of(s.num_codebooks, s.nbits_per_codebook, seed) for s in levels.stages]
    return Codec.of("a.weight", from_text(text), levels.first(), usage)


def drawn(found: Codec, count: int, seed: int) -> Tensor:
    """Codes that come as often as the codec expects, `[count, codes of a vector]`."""
    generator = torch.Generator().manual_seed(seed)
    usage = [row for s in found.levels.stages for row in usage_of(s.num_codebooks, s.nbits_per_codebook, 0)]
    return torch.stack([torch.multinomial(row, count, True, generator=generator) for row in usage], 1)


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, 12), shape=st.lists(st.integers(0, 7), max_size=3), seed=st.integers(0, 99))
def test_any_codes_come_back(bits: int, shape: list[int], seed: int) -> None:
    """Those too that were never chosen in training."""
    found = codec(bits)
    codes = torch.randint(1 << bits, (*shape, 2 * 3), generator=torch.Generator().manual_seed(seed))
    read, dimension = found.from_bytes(found.to_bytes(codes, -2))
    assert torch.equal(read, codes)
    assert read.dtype == torch.int64
    assert dimension == -2


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bytes_are_as_many_as_their_frequencies_say(bits: int) -> None:
    """-log2 of the true shares in float64 is the least; a header of 2 sizes and 2 lengths is 23 bytes."""
    found = codec(bits)
    codes = drawn(found, 20000, 1)
    shares = usage_of(2, bits, 0).double()
    ideal = sum(float(-shares[b][codes[:, b]].log2().sum()) for b in range(2)) / 8
    length = len(found.to_bytes(codes))
    assert 0.99 * ideal < length < 1.02 * ideal + 23
    assert abs(found.expected_bytes(codes) - ideal) < 0.02 * ideal
    assert length < 20000 * found.bits / 8
    entropy = sum(float(-(s[s > 0] * s[s > 0].log2()).sum()) for s in shares)
    assert found.coded_bits == pytest.approx(entropy, rel=0.02)


def test_long_codes_are_two_symbols() -> None:
    found = codec(11)
    codes = drawn(found, 5000, 2)
    read, _ = found.from_bytes(found.to_bytes(codes))
    assert torch.equal(read, codes)
    assert found.frequencies[0].shape == (2, 256 + 8)
    shares = usage_of(2, 11, 0).double().reshape(2, 8, 256)
    parts = [(s.sum(0), s.sum(1)) for s in shares]
    entropy = sum(float(-(p[p > 0] * p[p > 0].log2()).sum()) for pair in parts for p in pair)
    assert found.coded_bits == pytest.approx(entropy, rel=0.02)


def test_no_frequency_is_zero_and_each_book_has_its_own() -> None:
    usage = torch.zeros(2, 16)
    usage[0, 3] = usage[1, 5] = 1.0
    found = frequencies_of(usage, 4).int()
    assert found.min() == 1
    assert found.sum(1).tolist() == [1 << 14] * 2
    assert found.argmax(1).tolist() == [3, 5]


def test_an_activation_comes_back_as_the_model_sees_it() -> None:
    found = codec(
        text="codebook(2, num_codebooks=2, nbits_per_codebook=3) + codebook(2, nbits_per_codebook=2)"
    )
    x = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.decompress(found.compress(x, -3)), found.project(x, -3))
    assert torch.equal(found.project(x.bfloat16(), -3), found.project(x.bfloat16().float(), -3).bfloat16())


def test_bytes_of_another_codec_are_refused() -> None:
    data = codec(seed=0).compress(torch.zeros(3, 4))
    with pytest.raises(RequestError, match="other tables or frequencies"):
        codec(seed=1).decompress(data)
    with pytest.raises(RequestError, match="bytes of version 9"):
        codec().decompress(bytes([9]) + data[1:])


def test_damaged_bytes_are_found_or_still_have_their_shape() -> None:
    found = codec(8)
    data = found.to_bytes(drawn(found, 300, 3))
    for cut in range(0, len(data), 7):
        with pytest.raises(WorkError, match="damaged"):
            found.decompress(data[:cut])
    with pytest.raises(WorkError, match="damaged"):
        found.decompress(data + b"\0")
    generator, noticed = np.random.default_rng(0), 0
    for place in generator.integers(23, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        try:
            assert found.decompress(bytes(changed)).shape == (300, 4)
        except WorkError:
            noticed += 1
    assert noticed > 50  # the last state tells


def test_a_model_is_compressed_where_its_codec_is() -> None:
    found = codec()
    one = nn.Sequential(nn.Linear(3, 4), ProjectCodec(found, -1), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    codes, _ = found.from_bytes(compress(one, x))
    assert torch.equal(codes, found.encode(one[0](x)))
    assert codecs(one) == {"a.weight": found}
    two: Any = nn.Sequential(*one, nn.Linear(2, 4), ProjectCodec(found, -1))
    for model, message in ((two, "2 activations"), (one[0], "0 activations")):
        with pytest.raises(RequestError, match=message):
            compress(model, x)


def test_tables_that_are_not_finite_are_refused() -> None:
    representation = from_text("codebook(2, nbits_per_codebook=2)")
    usage = [torch.full((1, 4), 0.25)]
    for number in (math.nan, 1e9):
        with pytest.raises(RequestError, match="NaN or infinite"):
            Codec.of("a.weight", representation, [torch.full((1, 4, 2), number)], usage)
