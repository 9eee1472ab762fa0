"""Huffman codes: canonical, of limited length, many lanes side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .coder import Bytes, Coder, Counts, Reader, damaged, joined, lane_count

_LONGEST = 15  # bits of a code: lengths fit 4 bits, and a code with an offset of 15 bits fits 32
_CHUNK = 1 << 20

Lengths = NDArray[np.int64]


class Huffman(Coder):
    """Canonical Huffman codes of at most 15 bits, the best there are (Larmore, Hirschberg 1990).

    Bytes: the length of every symbol of the alphabet (4 bits), the number of bits of every lane (32 bits),
    and the codes of all symbols in order, highest bit first. A lane is a run of consecutive symbols.
    """

    def encode(self, symbols: Bytes, counts: Counts) -> Bytes:
        lengths = code_lengths(counts)
        per_lane = -(-len(symbols) // lane_count(len(symbols)))
        lane_starts = np.arange(0, len(symbols), per_lane)
        stream, bits = _bit_stream(symbols, lengths, lane_starts)
        nibbles = np.pad(lengths, (0, len(lengths) % 2)).astype(np.uint8)
        return joined(nibbles[::2] | nibbles[1::2] << 4, bits.astype("<u4"), stream)

    def decode(self, data: Bytes, count: int, alphabet: int) -> Bytes:
        reader = Reader(data)
        pairs = reader.take(-(-alphabet // 2), "u1").astype(np.int64)
        lengths = np.stack([pairs & 15, pairs >> 4], -1).reshape(-1)[:alphabet]
        if (
            int((lengths > 0).sum()) < 2
            or int((1 << (_LONGEST - lengths[lengths > 0])).sum()) != 1 << _LONGEST
        ):
            raise damaged("the lengths are of no code")
        per_lane = -(-count // lane_count(count))
        bits = reader.take(-(-count // per_lane), "<u4").astype(np.int64)
        stream = reader.rest("u1").astype(np.uint8)
        if -(-int(bits.sum()) // 8) != len(stream):
            raise damaged("they are not as long as they say")
        return _decoded(stream, bits, lengths, count, per_lane)

    def expected_bytes(self, probabilities: NDArray[np.float64], count: int) -> float:
        """Table, lengths of lanes, and the mean length of the code that these probabilities get."""
        lengths = code_lengths(np.ceil(probabilities * 2.0**40).astype(np.int64))
        fixed = -(-len(probabilities) // 2) + 4 * lane_count(count)
        return fixed + count * float((probabilities * lengths).sum()) / 8


def code_lengths(counts: Counts, longest: int = _LONGEST) -> Lengths:
    """Bits of every symbol's code, `longest` at most; 0 for one that does not occur. Two at least must occur.

    Package-merge: a symbol is a coin of every denomination from 2^-1 to 2^-longest; the 2 (n - 1) cheapest
    coins and packages of two of the next smaller denomination say how long codes are.
    """
    occurring = ((int(count), symbol) for symbol, count in enumerate(counts) if count)
    coins: list[tuple[int, tuple[int, ...]]] = [(count, (symbol,)) for count, symbol in sorted(occurring)]
    items = coins
    for _ in range(longest - 1):
        pairs = zip(items[::2], items[1::2], strict=False)
        packages = [(first[0] + second[0], first[1] + second[1]) for first, second in pairs]
        items = sorted(coins + packages, key=lambda item: item[0])
    chosen = [symbol for _, inside in items[: 2 * (len(coins) - 1)] for symbol in inside]
    return np.bincount(chosen, minlength=len(counts)).astype(np.int64)


def canonical(lengths: Lengths) -> Lengths:
    """The code of every symbol: codes ascend with length, then with symbol."""
    codes, code, before = np.zeros(len(lengths), dtype=np.int64), 0, 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)):
        code <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def _bit_stream(symbols: Bytes, lengths: Lengths, lane_starts: Lengths) -> tuple[Bytes, Lengths]:
    """All codes one after the other, and the bits of every lane."""
    codes = canonical(lengths).astype(np.uint32)
    total = int((np.bincount(symbols, minlength=len(lengths)) * lengths).sum())
    words = np.zeros(total // 16 + 3, dtype=np.uint32)  # 16 bits each
    bounds: list[NDArray[np.int64]] = []
    position = 0
    for begin in range(0, len(symbols), _CHUNK):
        here = symbols[begin : begin + _CHUNK]
        length = lengths[here]
        offset = position + np.cumsum(length) - length
        inside = lane_starts[(lane_starts >= begin) & (lane_starts < begin + len(here))]
        bounds.append(offset[inside - begin])
        window = codes[here] << (32 - length - (offset & 15)).astype(np.uint32)
        word = offset >> 4
        first = np.flatnonzero(np.diff(word, prepend=-1))
        words[word[first]] |= np.bitwise_or.reduceat(window >> np.uint32(16), first)
        words[word[first] + 1] |= np.bitwise_or.reduceat(window & np.uint32(0xFFFF), first)
        position = int(offset[-1] + length[-1])
    stream = words.astype(">u2").view(np.uint8)[: -(-position // 8)]
    return stream, np.diff(np.concatenate([*bounds, [position]]))


def _decoded(stream: Bytes, bits: Lengths, lengths: Lengths, count: int, per_lane: int) -> Bytes:
    symbol, size = _decoding_table(lengths)
    ends = np.cumsum(bits)
    place = ends - bits
    padded = np.pad(stream, (0, 4)).astype(np.uint32)
    window = padded[:-3] << 16 | padded[1:-2] << 8 | padded[2:-1]  # 24 bits from every byte on
    out = np.empty((len(bits), per_lane), dtype=np.uint8)
    short = count - (len(bits) - 1) * per_lane  # symbols of the last lane
    for step in range(per_lane):
        active = place if step < short else place[:-1]
        found = window.take(active >> 3, mode="clip") >> (9 - (active & 7)).astype(np.uint32)
        found &= (1 << _LONGEST) - 1
        out[: len(active), step] = symbol[found]
        active += size[found]
    if bool((place != ends).any()):
        raise damaged("a lane does not end where the next begins")
    return out.reshape(-1)[:count]


def _decoding_table(lengths: Lengths) -> tuple[Bytes, Lengths]:
    """Symbol and length of the code that every 15 bits begin with."""
    order = sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s))
    spans = 1 << (_LONGEST - lengths[order])
    return np.repeat(np.array(order, dtype=np.uint8), spans), np.repeat(lengths[order], spans)
