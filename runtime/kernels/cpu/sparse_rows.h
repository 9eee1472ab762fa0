// The decoder of sparse matrices.

#pragma once

#include "sparse_expand.h"
#include "sparse_places.h"

template <class Number> class SparseRows {
    static constexpr bool WORDS = std::is_same<Number, Bfloat>::value;

    const SparsePlan &plan;
    const uint8_t *places;
    const int64_t *starts;  // survivors, or blocks, before each row of places; null where every row has as many
    Masks masks;
    Survivors<Number> survivors;
    std::unique_ptr<uint32_t[]> found;
#if EXPANDS
    std::unique_ptr<Levels> levels;
#endif

  public:
    SparseRows(const SparsePlan &plan, const void *const *fields)
        : plan(plan), places((const uint8_t *)fields[PLACES_FIELD]), starts((const int64_t *)fields[STARTS_FIELD]),
          masks(plan, fields), survivors(plan, fields, plan.columns + plan.block_columns),
          found(new uint32_t[plan.columns + CHUNK]) {
#if EXPANDS
        if (WORDS && plan.stored == CODES && survivors.bare) levels.reset(new Levels(*(const Plan *)fields[PLAN_FIELD]));
#endif
    }
    float factor(int64_t n) { return plan.kind == LINES && !stays(n) ? 1 : survivors.factor(row_of(n)); }

    bool scaled() const { return plan.stored == CODES && survivors.bare; }

    void fill(int64_t n, int64_t first, int64_t count, Number *out) {
        if (plan.kind == BLOCKS) return blocks(n, first, count, out);
        if (plan.kind == OFFSETS) return positions(n, first, count, out);
        if (plan.kind == LINES) return line(n, first, count, out);
        int64_t before;
        const uint8_t *mask = masks.get(n, first, count, before);
        int64_t from = before + (plan.flat ? starts[n] : 0), row = row_of(n);
#if EXPANDS
        if constexpr (WORDS)
            if (levels) {
                int bits = survivors.bits();
                soon(survivors.row(row) + from * bits / 8, count / 8 * bits);
                return levels->get(mask, survivors.codes, survivors.row(row), from, bits, count, out);
            }
#endif
#if WIDENS
        if constexpr (!WORDS)
            if (plan.stored == BFLOAT16)
                return widened(mask, survivors.words(row, from, ones(mask, count / 8)), count, out);
#endif
        expanded(mask, survivors.get(row, from, ones(mask, count / 8)), count, out);
    }

  private:
    // The row of the survivors' matrix in which those of a row are
    int64_t row_of(int64_t n) const { return plan.flat ? 0 : plan.kind == LINES ? starts[n] : n; }

    bool stays(int64_t n) const { return starts[n + 1] > starts[n]; }  // of a row

    void line(int64_t n, int64_t first, int64_t count, Number *out) {
        int64_t there = stays(n) ? std::max<int64_t>(0, std::min(count, plan.columns - first)) : 0;
        if (there) memcpy(out, survivors.get(starts[n], first, there), (size_t)there * sizeof(Number));
        std::fill(out + there, out + count, Number(0));
    }
    void blocks(int64_t n, int64_t first, int64_t count, Number *out) {
        int64_t high = plan.block_rows, wide = plan.block_columns, across = (plan.columns + wide - 1) / wide;
        const uint8_t *mask = places + n / high * plan.place_row_bytes;
        int64_t block = first / wide, end = std::min(across, (first + count + wide - 1) / wide), at = starts[n / high];
        at += ones(mask, block / 8) + __builtin_popcount(mask[block >> 3] & ((1 << (block & 7)) - 1));
        std::fill(out, out + count, Number(0));
        for (; block < end; block++) {
            if (!(mask[block >> 3] >> (block & 7) & 1)) continue;
            int64_t begin = std::max(first, block * wide), stop = std::min(first + count, block * wide + wide);
            int64_t from = at++ * high * wide + n % high * wide + begin - block * wide;
#if WIDENS
            if constexpr (!WORDS)
                if (plan.stored == BFLOAT16) {
                    const uint16_t *word = survivors.words(0, from, stop - begin);
                    for (int64_t i = begin; i < stop; i++) out[i - first] = number(word[i - begin]);
                    continue;
                }
#endif
            const Number *here = survivors.get(0, from, stop - begin);
            if (stop - begin == 16)  // a size that is known is copied in a register
                memcpy(out + begin - first, here, 16 * sizeof(Number));
            else
                memcpy(out + begin - first, here, (size_t)(stop - begin) * sizeof(Number));
        }
    }
    void positions(int64_t n, int64_t first, int64_t count, Number *out) {
        int64_t from = starts ? starts[n] : 0, to = starts ? starts[n + 1] : plan.survivor_columns;
        to = std::min(to, from + plan.columns);
        std::fill(out, out + count, Number(0));
        if (from == to) return;
#if WIDE
        const uint32_t *place = places_of(n, from, to);
        uint32_t origin = (uint32_t)(first + (plan.absolute ? n * plan.columns : 0));
        int64_t begin = 0, end = 0;  // those that are asked for: positions ascend
        for (int64_t i = 0; i < to - from; i++) begin += place[i] < origin, end += place[i] < origin + (uint32_t)count;
#else
        uint32_t origin = (uint32_t)(first + (plan.absolute ? n * plan.columns : 0));
        from = place_from(n, from, to, origin), to = place_from(n, from, to, origin + (uint32_t)count);
        const uint32_t *place = places_of(n, from, to);
        int64_t begin = 0, end = to - from;
#endif
        const Number *value = survivors.get(row_of(n), from + begin, end - begin);
        for (int64_t i = begin; i < end; i++) {
            uint32_t at = place[i] - origin;
            if (at < (uint32_t)count) out[at] = value[i - begin];  // always, unless they are damaged
        }
    }
#if !WIDE
    // The first of positions `from` to `to` that is no less than `least`: they ascend
    int64_t place_from(int64_t n, int64_t from, int64_t to, uint32_t least) const {
        const uint8_t *row = places + n * plan.place_row_bytes, *end = places + plan.place_bytes;
        while (from < to) {
            int64_t middle = (from + to) / 2;
            if (number_at(row, end, middle * plan.place_bits, plan.place_bits) < least)
                from = middle + 1;
            else
                to = middle;
        }
        return from;
    }
#endif
    // Positions `from` to `to` of those that lie in a row with this one's
    const uint32_t *places_of(int64_t n, int64_t from, int64_t to) {
        const uint8_t *row = places + n * plan.place_row_bytes, *end = places + plan.place_bytes;
        int64_t bits = plan.place_bits, count = to - from, i = 0;
        uint32_t *out = found.get();
        soon(row + from * bits / 8, count * bits / 8);
#if WIDE
        if (bits <= 24) {
            __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            lane = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)bits));
            __m512i mask = _mm512_set1_epi32((1 << bits) - 1), four = _mm512_set1_epi32(0x03020100);
            for (; i + 16 <= count; i += 16) {
                int64_t at = (from + i) * bits;
                const uint8_t *start = row + (at >> 3);
                if (end - start < 64) break;
                __m512i bit = _mm512_add_epi32(lane, _mm512_set1_epi32((int)(at & 7)));
                __m512i byte = _mm512_mullo_epi32(_mm512_srli_epi32(bit, 3), _mm512_set1_epi32(0x01010101));
                __m512i word = _mm512_permutexvar_epi8(_mm512_add_epi8(byte, four), _mm512_loadu_si512(start));
                word = _mm512_srlv_epi32(word, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
                _mm512_storeu_si512(out + i, _mm512_and_si512(word, mask));
            }
        }
#endif
        for (; i < count; i++) out[i] = number_at(row, end, (from + i) * bits, (int)bits);
        return out;
    }
};
