"""Range asymmetric numeral systems: interleaved lanes of 32-bit states, renormalised by 16 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .coder import Bytes, Coder, Counts, Reader, damaged, entropy_bits, joined, lane_count

_BITS = 14  # frequencies sum to 2^14: more leave a state too coarse, fewer a rare symbol too dear
_TOTAL = 1 << _BITS
_LOW = np.uint32(1 << 16)  # states are in [2^16, 2^32)
_SHIFT = np.uint32(16)
_PRECISION, _ROOM = np.uint32(_BITS), np.uint32(32 - _BITS)
_SLOT = np.uint32(_TOTAL - 1)
_WORD = np.uint32(0xFFFF)
_ROWS = 1024  # steps whose frequencies are looked up at once

Words = NDArray[np.uint32]


class Rans(Coder):
    """rANS (Duda, 1311.2540; interleaved as in Giesen, 1402.3392).

    A symbol with frequency f out of 2^14 and cumulated frequency c takes a state x to
    floor(x / f) 2^14 + c + x mod f, after its low 16 bits were put out if the result would not fit. Bytes: a
    bit per symbol of the alphabet for those that occur, their frequencies less one (16 bits), the last state
    of every lane (32 bits), and the 16-bit words in the order in which decoding reads them. Decoding must end
    in the states that encoding began with, which finds most damage.
    """

    def encode(self, symbols: Bytes, counts: Counts) -> Bytes:
        frequencies = quantised(counts)
        present = frequencies > 0
        table = joined(np.packbits(present, bitorder="little"), (frequencies[present] - 1).astype("<u2"))
        return joined(table, self.encode_under(symbols, frequencies))

    def encode_under(self, symbols: Bytes, frequencies: Words) -> Bytes:
        """The same without a table: under frequencies that decoding is given too (see `quantised`), of which
        none is 0 for a symbol that occurs."""
        states, words = _encoded(symbols, frequencies, lane_count(len(symbols)))
        return joined(states.astype("<u4"), words.astype("<u2"))

    def decode(self, data: Bytes, count: int, alphabet: int) -> Bytes:
        reader = Reader(data)
        frequencies = _read_table(reader, alphabet)
        return self._rest(reader, frequencies, count)

    def decode_under(self, data: Bytes, count: int, frequencies: Words) -> Bytes:
        """`count` symbols from what `encode_under` gave. Raises WorkError when the bytes are damaged."""
        return self._rest(Reader(data), frequencies, count)

    def _rest(self, reader: Reader, frequencies: Words, count: int) -> Bytes:
        states = reader.take(lane_count(count), "<u4").astype(np.uint32)
        words = reader.rest("<u2").astype(np.uint32)
        return _decoded(states, words, frequencies, count)

    def expected_bytes(self, probabilities: NDArray[np.float64], count: int) -> float:
        """Table, states less what they hold of the message (half of their upper bits), and entropy."""
        table = -(-len(probabilities) // 8) + 2 * int((probabilities > 0).sum())
        return table + 3 * lane_count(count) + count * entropy_bits(probabilities) / 8


def quantised(counts: Counts) -> Words:
    """Frequencies that sum to 2^14, at least one for each symbol that occurs; two must occur."""
    scaled = counts * (_TOTAL / counts.sum())
    frequencies = np.where(counts > 0, np.maximum(np.rint(scaled), 1), 0).astype(np.int64)
    while excess := int(frequencies.sum()) - _TOTAL:  # rounding: the most frequent symbol minds it least
        most = int(frequencies.argmax())
        frequencies[most] -= min(excess, int(frequencies[most]) - 1)
    return frequencies.astype(np.uint32)


def _read_table(reader: Reader, alphabet: int) -> Words:
    present = np.unpackbits(reader.take(-(-alphabet // 8), "u1").view(np.uint8), bitorder="little")[:alphabet]
    frequencies = np.zeros(alphabet, dtype=np.uint32)
    frequencies[present.astype(bool)] = reader.take(int(present.sum()), "<u2").astype(np.uint32) + 1
    if int(frequencies.sum()) != _TOTAL or int(present.sum()) < 2:
        raise damaged("the frequencies do not add up")
    return frequencies


def _encoded(symbols: Bytes, frequencies: Words, lanes: int) -> tuple[Words, NDArray[np.uint16]]:
    """Last state of every lane and the words, symbol i in lane i mod lanes; from the last to the first."""
    starts = (np.cumsum(frequencies) - frequencies).astype(np.uint32)
    states = np.full(lanes, _LOW)
    words = np.empty(len(symbols) + lanes, dtype=np.uint16)  # a symbol puts out one word at most
    position = len(words)
    steps = -(-len(symbols) // lanes)
    for chunk in range((steps - 1) // _ROWS, -1, -1):
        here = symbols[chunk * _ROWS * lanes : (chunk + 1) * _ROWS * lanes]
        frequency, start = frequencies[here], starts[here]
        for begin in range((len(here) - 1) // lanes * lanes, -1, -lanes):
            f, c = frequency[begin : begin + lanes], start[begin : begin + lanes]
            x = states[: len(f)]
            over = np.flatnonzero(x >= f << _ROOM)
            if len(over):
                full = x[over]
                words[position - len(over) : position] = full & _WORD
                position -= len(over)
                x[over] = full >> _SHIFT
            quotient = x // f
            x += quotient * (np.uint32(_TOTAL) - f) + c  # q 2^14 + c + (x - q f)
    return states, words[position:]


def _decoded(states: Words, words: Words, frequencies: Words, count: int) -> Bytes:
    symbol = np.repeat(np.arange(len(frequencies), dtype=np.uint8), frequencies)
    starts = np.cumsum(frequencies) - frequencies
    frequency = np.repeat(frequencies, frequencies)
    offset = (np.arange(_TOTAL) - np.repeat(starts, frequencies)).astype(np.uint32)
    out = np.empty(count, dtype=np.uint8)
    lanes, position = len(states), 0
    for begin in range(0, count, lanes):
        x = states[: min(lanes, count - begin)]
        slot = x & _SLOT
        out[begin : begin + lanes] = symbol[slot]
        x >>= _PRECISION
        x *= frequency[slot]
        x += offset[slot]
        under = np.flatnonzero(x < _LOW)
        if len(under):
            read = words[position : position + len(under)]
            if len(read) < len(under):
                raise damaged("they end too early")
            x[under] = x[under] << _SHIFT | read
            position += len(under)
    if position != len(words) or bool((states != _LOW).any()):
        raise damaged("decoding does not end where encoding began")
    return out
