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
#if EXPANDS
    std::unique_ptr<Levels> levels;
#endif

  public:
    SparseRows(const SparsePlan &plan, const void *const *fields)
        : plan(plan), places((const uint8_t *)fields[PLACES_FIELD]), starts((const int64_t *)fields[STARTS_FIELD]),
          masks(plan, fields), survivors(plan, fields, plan.columns + plan.block_columns) {
#if EXPANDS
        if (WORDS && plan.stored == CODES && survivors.bare) levels.reset(new Levels(*(const Plan *)fields[PLAN_FIELD]));
#endif
    }
    float factor(int64_t n) { return plan.kind == LINES && !stays(n) ? 1 : survivors.factor(row_of(n)); }

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
        for (int64_t i = 0; i < block; i++) at += mask[i >> 3] >> (i & 7) & 1;
        std::fill(out, out + count, Number(0));
        for (; block < end; block++) {
            if (!(mask[block >> 3] >> (block & 7) & 1)) continue;
            int64_t begin = std::max(first, block * wide), stop = std::min(first + count, block * wide + wide);
            int64_t from = at * high * wide + n % high * wide + begin - block * wide;
            memcpy(out + begin - first, survivors.get(0, from, stop - begin), (size_t)(stop - begin) * sizeof(Number));
            at++;
        }
    }
    void positions(int64_t n, int64_t first, int64_t count, Number *out) {
        int64_t from = starts ? starts[n] : 0, to = starts ? starts[n + 1] : plan.survivor_columns;
        const uint8_t *row = places + n * plan.place_row_bytes, *end = places + plan.place_bytes;
        int64_t origin = first + (plan.absolute ? n * plan.columns : 0), bits = plan.place_bits;
        auto place = [&](int64_t i) { return (int64_t)number_at(row, end, i * bits, (int)bits) - origin; };
        std::fill(out, out + count, Number(0));
        while (first && from < to && place(from) < 0) from++;
        const Number *value = survivors.get(row_of(n), from, std::min(to - from, plan.columns));
        for (int64_t i = from; i < to; i++, value++) {
            int64_t at = place(i);
            if (at >= count) break;
            if (at >= 0) out[at] = *value;
        }
    }
};
