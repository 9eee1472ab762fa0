// A decoder of scalar codes: levels times scales, or codes without their zero points times scales.

#pragma once

#include "decode_codes.h"
#include "decode_scales.h"

// How scales lie over a row: one for all of it, one for some chunks, some for each chunk, or in any other way
enum Spread { ROW, CHUNKS, PARTS, ANY };
constexpr bool FAST = WIDE || EIGHTS;  // whether scales are moved across a vector

static inline Spread spread_of(const Plan &plan) {
    int64_t size = plan.share_columns;
    if (plan.scale_columns == 1) return ROW;
    if (FAST && size % CHUNK == 0) return CHUNKS;
    return FAST && size > 1 && size <= 32 && !(size & (size - 1)) ? PARTS : ANY;
}

// Values of a table of a row for numbers of that row
class Spreader {
    int64_t size;
    std::unique_ptr<float[]> room;  // of each number, where nothing better is known

  public:
    Spread kind;
    int shift = 0;  // size of a part
    I lanes;        // the part, of those that begin at a vector, in which each lane lies

    Spreader(const Plan &plan, int64_t per_lane = 1) : size(plan.share_columns), kind(spread_of(plan)) {
        if (kind == ANY) room.reset(new float[plan.columns + size + CHUNK]());
        while (kind == PARTS && (1 << shift) < size) shift++;
        for (int i = 0; i < W; i++) lanes[i] = (int32_t)((i * per_lane) >> shift);
    }
    void row(const float *values, int64_t count) {
        if (kind != ANY) return;
        for (int64_t g = 0; g < count; g++)
            for (int64_t i = 0; i < size; i += W) store(room.get() + g * size + i, splat(values[g]));
    }
    // for the vector that begins at number k
    template <Spread KIND> inline V get(const float *values, int64_t k) const {
#if WIDE
        if constexpr (KIND == PARTS)
            return (V)_mm512_permutexvar_ps((__m512i)lanes, _mm512_loadu_ps(values + (k >> shift)));
#elif EIGHTS
        if constexpr (KIND == PARTS)
            return (V)_mm256_permutevar8x32_ps(_mm256_loadu_ps(values + (k >> shift)), (__m256i)lanes);
#endif
        if constexpr (KIND == CHUNKS) return splat(values[(uint32_t)k / (uint32_t)size]);
        return KIND == ROW ? splat(values[0]) : load(room.get() + k);
    }
    // for all vectors of the chunk that begins there
    template <Spread KIND> inline void all(const float *values, int64_t k, V *out) const {
#pragma GCC unroll 16
        for (int i = 0; i < CHUNK / W; i++)
            out[i] = i && (KIND == ROW || KIND == CHUNKS) ? out[0] : get<KIND>(values, k + i * W);
    }
};

// Two vectors of numbers that follow each other
static inline void put_two(float *out, V low, V high) { store(out, low), store(out + W, high); }
static inline void put_two(Bfloat *out, V low, V high) {
#if PAIRS
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
#else
    store(out, low), store(out + W, high);
#endif
}

// `Codes` as they are multiplied, without scales where a row has one; `Exact` for what is rounded with them.
template <class A, class Codes, class Exact> class Scalar {
    using Number = typename A::Number;

    const Plan &plan;
    CodeRows rows;
    Codes codes;
    Exact exact;
    Spreader spread, spread_zero;
    TileScales table;
    int64_t at = -1;
    bool bare;  // whether numbers are handed over without scales

  public:
    Scalar(const Plan &plan, const Fields &fields)
        : plan(plan), rows(plan, fields), codes(plan), exact(plan), spread(plan), spread_zero(plan),
          table(plan, fields), bare(spread.kind == ROW && !plan.zero_kind) {}

    float factor(int64_t n) {
        if (!bare) return 1;
        table.row(n);
        return table.scale[0];
    }
    void fill(int64_t n, int64_t first, int64_t count, Number *out) {
        if (bare) return levels(n, first, count, out);
        scaled(n, first, count, [&](V low, V high, int64_t k) { put_two(out + k - first, low, high); });
    }
    // The numbers of row n, rounded once: `columns` of them.
    template <class T> void row(int64_t n, T *out) {
        T room[CHUNK];
        int64_t whole = plan.columns / CHUNK * CHUNK;
        scaled(n, 0, whole, [&](V low, V high, int64_t k) { store(out + k, low), store(out + k + W, high); });
        if (whole == plan.columns) return;
        scaled(n, whole, CHUNK, [&](V low, V high, int64_t k) {
            store(room + k - whole, low), store(room + k - whole + W, high);
        });
        memcpy(out + whole, room, (size_t)(plan.columns - whole) * sizeof(T));
    }

  private:
    void levels(int64_t n, int64_t first, int64_t count, Number *out) {
        constexpr int SIZE = (int)A::SIZE;
        typename A::Vector values[CHUNK / SIZE];
        const uint8_t *bytes = rows.get(n);
        for (int64_t k = 0; k < count; k += CHUNK) {
            codes.get(bytes + (first + k) / 8 * plan.bits, first + k + CHUNK <= plan.columns, values);
            memcpy(out + k, values, sizeof values);
        }
    }
    template <class Put> void scaled(int64_t n, int64_t first, int64_t count, Put put) {
        table.row(n);
        if (at != n) {
            spread.row(table.scale, plan.scale_columns);
            if (plan.zero_kind) spread_zero.row(table.zero, plan.scale_columns);
            at = n;
        }
        switch (spread.kind) {
            case ROW: return spread_scaled<ROW>(n, first, count, put);
            case CHUNKS: return spread_scaled<CHUNKS>(n, first, count, put);
            case PARTS: return spread_scaled<PARTS>(n, first, count, put);
            default: return spread_scaled<ANY>(n, first, count, put);
        }
    }
    template <Spread KIND, class Put> inline void spread_scaled(int64_t n, int64_t first, int64_t count, Put put) {
        V values[CHUNK / W];
        const uint8_t *bytes = rows.get(n);
        for (int64_t k = first; k < first + count; k += CHUNK) {
            exact.get(bytes + k / 8 * plan.bits, k + CHUNK <= plan.columns, values);
            V scale[CHUNK / W];
            spread.all<KIND>(table.scale, k, scale);
            if (plan.zero_kind) {
                V zero[CHUNK / W];
                spread_zero.all<KIND>(table.zero, k, zero);
#pragma GCC unroll 16
                for (int i = 0; i < CHUNK / W; i++) values[i] -= zero[i];
            }
#pragma GCC unroll 16
            for (int i = 0; i < CHUNK / W; i++) values[i] *= scale[i];
#pragma GCC unroll 16
            for (int i = 0; i < CHUNK / W; i += 2) put(values[i], values[i + 1], k + i * W);
        }
    }
};
