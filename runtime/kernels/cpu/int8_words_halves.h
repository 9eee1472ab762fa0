// Products of codes of eight bits with a few rows of input, row by row of the weight as it is stored.
//
// Two products of bytes do not fit a word, as 255 * -128 * 2 does not. With q = 2 h + l, where l is 0 or 1, those with
// h do, and of those with l many do, so that nothing is widened but sums.

#pragma once

#include "int8_words.h"

#ifdef WORDS

class Halves {  // of the input, rows beyond the last are zero
    std::unique_ptr<int8_t[]> room;

  public:
    static constexpr int64_t STEP = 64;  // bytes of the weight
    const int64_t stride;                // of a row: the upper halves of a vector of columns, then the lower ones
    int32_t all[FEW_ROWS] = {};          // sums of rows

    Halves(const Product &p, const Input &x)
        : room(new int8_t[FEW_ROWS * 2 * over(p.columns, STEP) * STEP]()), stride(2 * over(p.columns, STEP) * STEP) {
        for (int64_t m = 0; m < x.rows; m++)
            for (int64_t i = 0; i < p.columns; i++) {
                const int8_t q = x.codes[m * p.stride + i];
                int8_t *to = room.get() + m * stride + i / 32 * 64 + i % 32;
                to[0] = (int8_t)(q >> 1), to[32] = q & 1, all[m] += q;
            }
    }
    const int8_t *row(int64_t m) const { return room.get() + m * stride; }
};

// Exact sums of MR rows of the input with one of the weight, of which all STEPs may be read
template <int MR> static SEPARATE void halves_of_row(const uint8_t *u, const Halves &x, int64_t steps, int32_t *out) {
    constexpr int64_t MOST = 32;  // steps: 64 products of 255 * 2 fit a word
    const __m256i twice = _mm256_set1_epi16(2), once = _mm256_set1_epi16(1);
    __m256i sums[MR];
    const int8_t *q[MR];
    each<MR>([&](auto m) INLINE { sums[m] = _mm256_setzero_si256(), q[m] = x.row(m); });
    for (int64_t at = 0; at < steps;) {
        __m256i low[MR];
        each<MR>([&](auto m) INLINE { low[m] = _mm256_setzero_si256(); });
        for (const int64_t end = std::min(at + MOST, steps); at < end; at++) {
            fetched_bytes(u + at * Halves::STEP);
            each<2>([&](auto i) INLINE {
                const __m256i v = kept(loaded(u + at * Halves::STEP + 32 * i));
                each<MR>([&](auto m) INLINE {
                    const int8_t *from = q[m] + at * 2 * Halves::STEP + 64 * i;
                    const __m256i pairs = _mm256_maddubs_epi16(v, loaded(from));
                    sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(pairs, twice));
                    low[m] = _mm256_add_epi16(low[m], _mm256_maddubs_epi16(v, loaded(from + 32)));
                });
            });
        }
        each<MR>([&](auto m) INLINE { sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(low[m], once)); });
    }
    each<MR>([&](auto m) INLINE {
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums[m]), _mm256_extracti128_si256(sums[m], 1));
        half = _mm_hadd_epi32(half, half);
        out[m] = _mm_cvtsi128_si32(_mm_hadd_epi32(half, half));
    });
}

class RowsByHalves {
    static constexpr int TOGETHER = 32;  // rows of the weight that are finished at once
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Cut cut;
    const Halves input;
    Scales scales;
    const int64_t steps;
    std::unique_ptr<uint8_t[]> end;  // the last row, where what is read goes beyond it
    int32_t exact[FEW_ROWS][TOGETHER], center[TOGETHER];
    float scale[TOGETHER];

  public:
    RowsByHalves(const Product &p, const Weight &w, const Input &x, const Output &out)
        : p(p), w(w), x(x), out(out), cut(p, 0), input(p, x), scales(p, w, cut), steps(over(p.columns, Halves::STEP)),
          end(new uint8_t[steps * Halves::STEP]()) {}

    void run(int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n += TOGETHER) {
            const int count = (int)std::min((int64_t)TOGETHER, last - n);
            for (int r = 0; r < count; r++) multiply(n + r, r);
            scales.column(n, count, scale, center);
            for (int64_t m = 0; m < x.rows; m++) finish_row(m, n, count);
        }
    }

  private:
    void multiply(int64_t n, int to) {
        const uint8_t *u = w.codes + n * p.row_bytes;
        const int64_t left = (p.rows - n) * p.row_bytes;
        if (steps * Halves::STEP > left) u = (const uint8_t *)memcpy(end.get(), u, (size_t)left);
        int32_t found[FEW_ROWS];
        each<3>([&](auto i) INLINE {
            if (x.rows <= 1 << i && x.rows > (1 << i) / 2) halves_of_row<1 << i>(u, input, steps, found);
        });
        for (int64_t m = 0; m < x.rows; m++) exact[m][to] = found[m];
    }
    void finish_row(int64_t m, int64_t n, int count) {
        const int32_t all = input.all[m];
        float values[TOGETHER];
        for (int r = 0; r < count; r++)
            values[r] = ((float)(exact[m][r] + center[r] * all) + p.half * (float)all) * scale[r];
        finish(p, w, x, out, m, n, values, count);
    }
};

#endif
