// Integer products for some rows of input: dot products along columns, in blocks. What is multiplied at a time
// stays in the nearest cache, and the rows of the weight that come next are fetched meanwhile. Codes of fewer bits
// than a byte are unpacked in registers instead (int8_rows.h): less is read, and unpacking hides behind products.

#pragma once

#include "int8_rows.h"

#ifdef DOTS

constexpr int64_t BLOCK_ROWS = 16;  // of input; above, whole rows were measured as no slower

// Sums of 6 rows of the weight and MR of the input over some steps, added to `sums` but for the `first` steps.
// A step fetches LINES of what comes later. Kept in vectors, which are added up when all steps are done.
template <int MR, int LINES>
static SEPARATE void block_of_dots(const uint8_t *u, const int8_t *q, int64_t steps, bool first, int32_t *sums,
                                   const char *later, int64_t pace) {
    constexpr int NR = 6;
    __m512i v[NR * MR];
    if (first) each<NR * MR>([&](auto i) INLINE { v[i] = _mm512_setzero_si512(); });
    else each<NR * MR>([&](auto i) INLINE { v[i] = _mm512_load_si512(sums + 16 * i); });
    for (int64_t at = 0; at < steps; at++, u += NR * STEP, q += MR * STEP, later += pace) {
        each<LINES>([&](auto i) INLINE { _mm_prefetch(later + STEP * i, _MM_HINT_T1); });
        __m512i row[NR];
        each<NR>([&](auto r) INLINE { row[r] = _mm512_load_si512(u + STEP * r); });
        each<MR>([&](auto m) INLINE {
            const __m512i input = _mm512_load_si512(q + STEP * m);
            each<NR>([&](auto r) INLINE { v[m * NR + r] = dot(v[m * NR + r], row[r], input); });
        });
    }
    each<NR * MR>([&](auto i) INLINE { _mm512_store_si512(sums + 16 * i, v[i]); });
}

class Blocks {
    static constexpr int NR = 6, MR = 4, COUNT = NR * MR, DEPTH = 16, MOST = 24;  // MOST rows of the weight together
    static constexpr int64_t NEAR = 128 << 10;  // bytes of the weight that are read while as many are fetched
    typedef void (*Dots)(const uint8_t *, const int8_t *, int64_t, bool, int32_t *, const char *, int64_t);
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Decoder<RAW> decode;
    Scales scales;
    const int64_t teams;     // MR rows of the input each, the last one what is left
    const int64_t pace;      // bytes that are fetched in a step
    const int64_t together;  // rows of the weight
    Dots whole, rest;
    std::unique_ptr<uint8_t[]> room;
    uint8_t *u;     // [step, NR] of a block
    int8_t *q;      // [block, team, step, MR]
    int32_t *sums;  // [NR rows, team, COUNT, 16]
    int32_t exact[MOST / NR * over(BLOCK_ROWS, MR) * COUNT] = {}, center[MOST] = {};
    float scale[MOST] = {};

  public:
    Blocks(const Product &p, const Weight &w, const Input &x, const Output &out, const Cut &cut)
        : p(p), w(w), x(x), out(out), decode(p), scales(p, w, cut), teams(over(x.rows, MR)),
          pace(over(NR * decode.bytes, teams)),
          together(std::max((int64_t)NR, std::min((int64_t)MOST, NEAR / p.row_bytes / NR * NR))) {
        const int64_t lines = over(pace, STEP);
        whole = dots(MR, lines), rest = dots((int)(x.rows - (teams - 1) * MR), lines);
        const int64_t block = NR * DEPTH * STEP, input = x.rows * decode.steps * STEP;
        room.reset(new uint8_t[block + input + MOST * teams * MR * STEP + STEP]);
        u = (uint8_t *)(((uintptr_t)room.get() + STEP - 1) / STEP * STEP);
        q = (int8_t *)u + block, sums = (int32_t *)(q + input);
        int8_t *to = q;
        for (int64_t first = 0; first < decode.steps; first += DEPTH)
            for (int64_t m = 0; m < x.rows; m += MR)
                for (int64_t at = first; at < std::min(first + DEPTH, decode.steps); at++)
                    for (int64_t i = m; i < std::min(m + MR, x.rows); i++, to += STEP)
                        memcpy(to, x.codes + i * p.stride + at * STEP, STEP);
    }

    void run(int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n += together) {
            const int count = (int)std::min(together, last - n);
            multiply(n, last, count);
            add_up(count);
            scales.column(n, count, scale, center);
            for (int64_t m = 0; m < x.rows; m++) finish_row(m, n, count);
        }
    }

  private:
    static Dots dots(int rows, int64_t lines) {
        return lines > 2 ? dots<3>(rows) : lines > 1 ? dots<2>(rows) : dots<1>(rows);
    }
    template <int LINES> static Dots dots(int rows) {
        constexpr Dots all[MR] = {block_of_dots<1, LINES>, block_of_dots<2, LINES>, block_of_dots<3, LINES>,
                                  block_of_dots<4, LINES>};
        return all[rows - 1];
    }
    void multiply(int64_t n, int64_t last, int count) {
        const char *later = (const char *)w.codes + (n + together) * p.row_bytes;
        const int8_t *from = q;
        for (int64_t first = 0; first < decode.steps; first += DEPTH) {
            const int64_t depth = std::min((int64_t)DEPTH, decode.steps - first);
            int32_t *to = sums;
            for (int r = 0; r < count; r += NR) {
                copy(n + r, last, first, depth);
                for (int64_t t = 0; t < teams; t++, to += COUNT * 16, later += depth * pace)
                    (t + 1 < teams ? whole : rest)(u, from + t * MR * depth * STEP, depth, !first, to, later, pace);
            }
            from += x.rows * depth * STEP;
        }
    }
    void copy(int64_t n, int64_t last, int64_t first, int64_t depth) {
        const uint8_t *from[NR];
        for (int r = 0; r < NR; r++) from[r] = w.codes + std::min(n + r, last - 1) * p.row_bytes;
        const int64_t free = decode.free(from[NR - 1], w.codes + p.rows * p.row_bytes), end = first + depth;
        uint8_t *to = u;
        int64_t at = first;
        for (; at < std::min(end, free); at++, to += NR * STEP)
            each<NR>([&](auto r) INLINE { _mm512_store_si512(to + STEP * r, decode(from[r], at)); });
        for (; at < end; at++, to += NR * STEP)
            each<NR>([&](auto r) INLINE { _mm512_store_si512(to + STEP * r, decode.careful(from[r], at)); });
    }
    void add_up(int count) {
        for (int64_t i = 0; i < over(count, NR) * teams; i++)
            totals<COUNT>((const __m512i *)(sums + i * COUNT * 16), exact + i * COUNT);
    }
    void finish_row(int64_t m, int64_t n, int count) {
        const int32_t all = x.sums[m], *from = exact + m / MR * COUNT + m % MR * NR;
        int32_t row[MOST];
        float values[MOST];
        for (int r = 0; r < MOST; r += NR, from += teams * COUNT) memcpy(row + r, from, 4 * NR);
        for (int r = 0; r < MOST; r++) values[r] = ((float)(row[r] + center[r] * all) + p.half * (float)all) * scale[r];
        finish(p, w, x, out, m, n, values, count);
    }
};

#endif
