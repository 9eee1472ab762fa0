// Where survivors are in a row, as a mask of bits, whichever way it is stored.

#pragma once

#include "sparse_groups.h"
#include "sparse_survivors.h"

class Masks {
    const SparsePlan &plan;
    const uint8_t *places;
    const void *choices;  // masks of codes: bytes, or words where a mask has more than eight bits
    std::unique_ptr<uint8_t[]> room;
    GroupPlaces groups;
    std::unique_ptr<uint32_t[]> units;  // that stay of a group
    Codes codes;
#if WIDE
    __m512i known[4];  // masks of all bytes, of which only the lower bits are a code
#endif

    static constexpr int64_t AFTER = 16;  // bytes that may be read past the end, of zeros

  public:
    Masks(const SparsePlan &plan, const void *const *fields)
        : plan(plan), places((const uint8_t *)fields[PLACES_FIELD]), choices(fields[CHOICES_FIELD]),
          room(new uint8_t[padded(plan.columns) / 8 + 4 * AFTER + 512]()), groups(plan, fields),
          units(new uint32_t[plan.survivor_columns + plan.kept]),
          codes(plan.place_bits, places + plan.place_bytes) {
#if WIDE
        if (plan.kind == CHOICES && plan.step == 8 && plan.place_bits <= 8)
            for (int i = 0; i < 256; i++)
                ((uint8_t *)known)[i] = ((const uint8_t *)choices)[i & ((1 << plan.place_bits) - 1)];
#endif
    }

    // The bits of numbers `first` to `first + count` of row n, multiples of CHUNK; and how many survivors of the
    // row are before them
    const uint8_t *get(int64_t n, int64_t first, int64_t count, int64_t &before) {
        if (plan.kind == MASK) return stored(n, first, count, before);
        // whole steps, so that groups that lie across the borders are found
        int64_t step = plan.kind == CHOICES ? plan.step : plan.of, from = first / step * step, at = first - from;
        uint8_t *out = room.get();
        if (plan.kind == CHOICES && plan.step == 8)
            chosen<uint8_t>(n, from, first + count, out);
        else if (plan.kind == CHOICES)
            chosen<uint64_t>(n, from, first + count, out);
        else
            indexed(n, from, first + count, out);
        before = from / plan.of * plan.kept;
        if (at) shifted(out, at, count, before);
        return out;
    }

  private:
    const uint8_t *stored(int64_t n, int64_t first, int64_t count, int64_t &before) {
        const uint8_t *row = places + n * plan.place_row_bytes;
        int64_t bytes = (plan.columns + 7) / 8, some = std::min(count / 8, bytes - first / 8);
        before = ones(row, first / 8);
        soon(row + first / 8, some);
        if (row + first / 8 + count / 8 + AFTER <= places + plan.place_bytes && some == count / 8) return row + first / 8;
        memcpy(room.get(), row + first / 8, (size_t)some);
        memset(room.get() + some, 0, (size_t)(count / 8 + AFTER - some));
        return room.get();
    }
    template <class Mask> void chosen(int64_t n, int64_t from, int64_t to, uint8_t *out) const {
        const uint8_t *row = places + n * plan.place_row_bytes, *end = places + plan.place_bytes;
        const Mask *table = (const Mask *)choices;
        soon(row + from / plan.step * plan.place_bits / 8, (to - from) / plan.step * plan.place_bits / 8);
        int64_t wide = plan.step / 8, first = from / plan.step, bits = plan.place_bits, i = 0;
        int64_t steps = (std::min(to, plan.columns) - from + plan.step - 1) / plan.step;
#if WIDE
        if (bits <= 8 && wide == 1) {
            for (; i < steps; i += 64) {
                __m512i code = codes.get(row, (first + i) * bits);
                __m512i low = _mm512_permutex2var_epi8(known[0], code, known[1]);
                __m512i high = _mm512_permutex2var_epi8(known[2], code, known[3]);
                _mm512_storeu_si512(out + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), low, high));
            }
        } else
#else
        if (bits <= 8 && wide == 1) {
            codes.get(row, first, steps, out);
            for (; i < steps; i++) out[i] = (uint8_t)table[out[i]];
        } else
#endif
        {
            int64_t safe = ((end - row) * 8 - 40) / bits - first;  // codes that are read as words
            uint32_t word, mask = (1u << bits) - 1;
            for (; i < std::min(safe, steps); i++) {
                int64_t at = (first + i) * bits;
                memcpy(&word, row + (at >> 3), 4);
                memcpy(out + i * wide, table + (word >> (at & 7) & mask), sizeof(Mask));
            }
            for (; i < steps; i++)
                memcpy(out + i * wide, table + number_at(row, end, (first + i) * bits, (int)bits), sizeof(Mask));
        }
        cleared(out, std::min(to, plan.columns) - from, to - from);  // the last code may have groups past the end
    }
    void indexed(int64_t n, int64_t from, int64_t to, uint8_t *out) const {
        memset(out, 0, (size_t)((to - from) / 8 + plan.of / 8 + 2 * AFTER));
        int64_t first = from / plan.of, count = (std::min(to, plan.columns) - from + plan.of - 1) / plan.of;
        groups.get(n, first, count, units.get());
        for (int64_t i = 0; i < count * groups.kept; i++) {
            int64_t unit = units[i], at = i / groups.kept * plan.of + unit * plan.vector;
            if (unit < groups.units)  // always, unless they are damaged
                for (int64_t j = at; j < at + plan.vector; j++) out[j >> 3] |= (uint8_t)(1 << (j & 7));
        }
    }
    // Zeros from bit `end` on, past all that is read
    static void cleared(uint8_t *bits, int64_t end, int64_t count) {
        int64_t byte = end / 8;
        if (end % 8) bits[byte] &= (uint8_t)((1 << (end % 8)) - 1), byte++;
        int64_t last = std::max(count / 8, byte) + 2 * AFTER;
        memset(bits + byte, 0, (size_t)(last - byte));
    }
    // Bits from `at` on moved to the front
    static void shifted(uint8_t *bits, int64_t at, int64_t count, int64_t &before) {
        for (int64_t j = 0; j < at; j++) before += bits[j >> 3] >> (j & 7) & 1;
        const uint8_t *from = bits + at / 8;
        for (int64_t i = 0; i < count / 8 + AFTER; i++)
            bits[i] = (uint8_t)((from[i] | from[i + 1] << 8) >> (at & 7));
    }
};
