"""Bytes: packed codes against numpy's own bit order, and names made from content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from rhoc.runtime.digest import digest, digest_bytes, digest_files
from rhoc.runtime.packing import pack, packed_length, unpack

from .strategies import repeatable


def numpy_pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Each code's bits from low to high, one after the other, eight to a byte from low to high."""
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")


@repeatable
@given(
    st.integers(1, 8), st.lists(st.integers(0, 4), max_size=2), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
def test_pack_is_numpys_little_endian_bit_stream(bits: int, rows: list[int], count: int, seed: int) -> None:
    shape = (*rows, count)
    codes = torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*rows, packed_length(count, bits))
    assert np.array_equal(packed.numpy(), numpy_pack(codes.numpy(), bits))
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_survives(bits: int) -> None:
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(3, 1)
    assert torch.equal(unpack(pack(codes, bits), bits, 2**bits), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_memory_layout_and_code_dtype_do_not_matter(bits: int) -> None:
    codes = torch.randint(2**bits, (7, 12), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    expected = numpy_pack(codes.t().contiguous().to(torch.uint8).numpy(), bits)
    assert np.array_equal(pack(codes.t(), bits).numpy(), expected)
    assert pack(codes.t(), bits).is_contiguous()


def test_a_mask_is_one_bit_a_position() -> None:
    mask = torch.tensor([[True, False, False, True, False, False, False, False, True]])
    assert pack(mask, 1).tolist() == [[0b0000_1001, 1]]


def test_two_nibbles_low_first() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]


def test_three_bits_across_bytes() -> None:
    # Lowest bit first, 5 is 101, 3 is 110 and 6 is 011; the ninth bit opens the second byte.
    assert pack(torch.tensor([5, 3, 6]), 3).tolist() == [0b1001_1101, 0b1]


def test_a_scalar_stays_a_byte() -> None:
    assert pack(torch.tensor(5), 3).shape == ()
    assert unpack(pack(torch.tensor(5), 3), 3).item() == 5


def test_digest_is_the_hash_of_canonical_json() -> None:
    text = b'{"a":[1,2.5,null,true],"b":"\xc3\xa9"}'
    state = hashlib.sha256(len(text).to_bytes(8, "little") + text)
    assert digest({"b": "é", "a": [1, 2.5, None, True]}) == state.hexdigest()[:16]
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert digest([1]) != digest(["1"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": float("-inf")}])
def test_numbers_without_json_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(value)


def test_boundaries_of_parts_count() -> None:
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc") != digest_bytes(b"abc")


def test_digest_of_files_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first, second = tmp_path / "a.txt", tmp_path / "sub" / "b.txt"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    expected = digest_bytes(b"a.txt", b"one", b"sub/b.txt", b"two")
    assert digest_files([second, first], tmp_path) == digest_files([first, second], tmp_path) == expected
    second.write_bytes(b"three")
    assert digest_files([first, second], tmp_path) != expected
