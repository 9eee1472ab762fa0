"""Machine text that puts the survivors of 2:4 where they belong: 16 numbers and 16 positions become 32.

Two neighbours of the dense row come from one register, which PRMT fills from a group's two survivors and from
zeros. PRMT makes its selectors as well: the two positions p < q of a group are one of six nibbles n = p + 4
q, the low three bits of n xor n / 2 tell them apart, and with such places in a table of eight bytes four
groups are looked up at once: for each of the four places of a group which two bytes of the survivors belong
there.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

GROUPS = 8  # of a unit, whose positions fill a word
_FIRST, _SECOND, _ZERO = 0x10, 0x32, 0x44  # selectors of the two bytes of a survivor, or of none


@lru_cache(maxsize=16)
def expanding(pairs: int) -> tuple[str, str]:
    """Text and constraints: 32 numbers in order from 16 survivors, and a word of positions.

    Survivors come two in a register: those of a group (`pairs` 0), or of each 2 `pairs` those that are
    `pairs` apart, as `unpacking` makes them.
    """
    first = 4 * GROUPS
    index = f"${first + GROUPS}"
    lines = [f"shr.u32 n, {index}, 1;", f"lop3.b32 n, n, {index}, 0x77777777, 0x28;"]  # (a ^ b) & c
    for found in "qu":
        if found == "u":
            lines.append("shr.u32 n, n, 16;")
        for place, (low, high) in enumerate(_tables()):
            lines += [f"mov.b32 s, {low};", f"mov.b32 t, {high};", f"prmt.b32 {found}{place}, s, t, n;"]
    for group in range(GROUPS):
        found, byte = "qu"[group // 4], group % 4
        pair = f"${first + group}"
        if pairs:
            unit, code = divmod(2 * group, 2 * pairs)
            lane, place = divmod(code, pairs)
            register = first + unit * pairs + place
            lines.append(f"prmt.b32 p, ${register}, ${register + 1}, {0x7632 if lane else 0x5410};")
            pair = "p"
        for place in (0, 2):
            out = 4 * group + place
            lines += [
                f"prmt.b32 s, {found}{place}, {found}{place + 1}, {byte | 4 + byte << 4};",
                f"prmt.b32 t, {pair}, 0, s;",
                f"mov.b32 {{${out}, ${out + 1}}}, t;",
            ]
    text = "{\n.reg .b32 n, p, s, t, q<4>, u<4>;\n" + "\n".join(lines) + "\n}"
    return text, ",".join(["=h"] * first + ["r"] * (GROUPS + 1))


def _tables() -> list[tuple[int, int]]:
    """For each place of a group the eight bytes, as two words, that are looked up."""
    tables = [[_ZERO] * 8 for _ in range(4)]
    for first, second in combinations(range(4), 2):
        nibble = first + 4 * second
        place = (nibble ^ nibble >> 1) & 7
        tables[first][place], tables[second][place] = _FIRST, _SECOND
    return [(_word(table[:4]), _word(table[4:])) for table in tables]


def _word(table: list[int]) -> int:
    return sum(byte << 8 * i for i, byte in enumerate(table))
