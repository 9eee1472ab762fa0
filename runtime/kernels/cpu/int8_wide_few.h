// Products of integers with one to four rows of input of 16 bits, row by row of the weight as it is stored. Sums of
// columns that share all scales are exact.

#pragma once

#include "int8_wide_codes.h"

#ifdef WORDS

// Rows of the input in the order of codes, and what belongs to pieces of them, whole vectors with zeros behind.
template <class Codes> struct WideInput {
    const int64_t chunks, stride, pieces;      // of a row: words, and pieces up to whole vectors and one more
    std::unique_ptr<int16_t[]> codes;          // [rows, chunks, STEPS, 16]
    std::unique_ptr<float[]> scales, sums;     // [rows, pieces]: sums of codes

    WideInput(const Product &p, const Input &x, int64_t rows)
        : chunks(over(p.columns, Codes::COLUMNS)), stride(chunks * Codes::COLUMNS),
          pieces(over(over(p.columns, p.piece), 8) * 8 + 8), codes(new int16_t[rows * stride]()),
          scales(new float[rows * pieces]()), sums(new float[rows * pieces]()) {
        for (int64_t m = 0; m < x.rows; m++) {
            const int16_t *from = (const int16_t *)x.codes + m * p.stride;
            int16_t *to = codes.get() + m * stride;
            for (int64_t first = 0; first < p.columns; first += Codes::COLUMNS)
                for (int step = 0; step < Codes::STEPS; step++)
                    for (int word = 0; word < 16; word++, to++) {
                        const int64_t at = first + Codes::column(step, word);
                        if (at < p.columns) *to = from[at];
                    }
            for (int64_t at = 0, piece = m * pieces; at < p.columns; at += p.piece, piece++) {
                int32_t sum = 0;
                for (int64_t i = at; i < std::min(at + p.piece, p.columns); i++) sum += from[i];
                sums[piece] = (float)sum, scales[piece] = x.scales[m * p.input_scales + at / p.input_columns];
            }
        }
    }
};

template <class Codes, bool SHORT, int MR> class WideRows {
    static constexpr int TOGETHER = 32;  // rows of the weight that are finished at once
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Cut cut;
    const Codes made;
    const WideInput<Codes> input;
    Scales scales;
    const int64_t step, reach;        // bytes of a chunk; that are read for a row
    std::unique_ptr<uint8_t[]> end;   // a row near the end of the weight, with room behind
    std::unique_ptr<float[]> factors; // [MR, pieces]: scales of both
    __m256i spread;                   // SHORT: the piece of each lane, from the first of a chunk

  public:
    WideRows(const Product &p, const Weight &w, const Input &x, const Output &out)
        : p(p), w(w), x(x), out(out), cut(p, 0), made(p), input(p, x, MR), scales(p, w, cut),
          step(Codes::bytes(p)), reach((input.chunks - 1) * step + Codes::read(p)), end(new uint8_t[reach]()),
          factors(new float[MR * input.pieces]()) {
        int32_t piece[8];
        for (int i = 0; i < 8; i++) piece[i] = SHORT ? (int32_t)(i * Codes::LANE / p.piece) : 0;
        spread = loaded(piece);
    }

    void run(int64_t first, int64_t last) {
        float values[MR][TOGETHER];
        for (int64_t n = first; n < last; n += TOGETHER) {
            const int count = (int)std::min((int64_t)TOGETHER, last - n);
            for (int r = 0; r < count; r++) {
                const uint8_t *bytes = w.codes + (n + r) * p.row_bytes;
                const int64_t left = (p.rows - n - r) * p.row_bytes;
                if (reach > left) bytes = (const uint8_t *)memcpy(end.get(), bytes, (size_t)left);
                float centers[MR];
                describe(n + r, centers);
                row(bytes, centers, r, values);
            }
            for (int64_t m = 0; m < x.rows; m++) finish(p, w, x, out, m, n, values[m], count);
        }
    }

  private:
    void describe(int64_t n, float *centers) {  // factors of a row, and what its centers add up to
        scales.row(n);
        __m256 sums[MR];
        each<MR>([&](auto m) INLINE { sums[m] = _mm256_setzero_ps(); });
        const __m256 half = _mm256_set1_ps(p.half);
        for (int64_t i = 0; i < cut.pieces; i += 8) {
            const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i here = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(cut.pieces - i)), lane);
            const __m256 scale = _mm256_maskload_ps(scales.scale + i, here);
            const __m256i center = _mm256_maskload_epi32(scales.center + i, here);
            const __m256 middle = _mm256_mul_ps(scale, _mm256_add_ps(_mm256_cvtepi32_ps(center), half));
            each<MR>([&](auto m) INLINE {
                const int64_t at = m * input.pieces + i;
                const __m256 entered = _mm256_loadu_ps(input.scales.get() + at);
                const __m256 all = _mm256_mul_ps(entered, _mm256_loadu_ps(input.sums.get() + at));
                sums[m] = _mm256_fmadd_ps(middle, all, sums[m]);
                _mm256_storeu_ps(factors.get() + at, _mm256_mul_ps(scale, entered));
            });
        }
        each<MR>([&](auto m) INLINE { centers[m] = total(sums[m]); });
    }

    SEPARATE void row(const uint8_t *bytes, const float *centers, int to, float (*values)[TOGETHER]) const {
        const Codes codes = made;  // copies, of which the compiler sees that nothing changes them
        const __m256i lanes = spread;
        const int64_t per = SHORT ? 1 : p.piece / Codes::COLUMNS, parts = SHORT ? Codes::COLUMNS / p.piece : 1;
        const int16_t *q = input.codes.get();
        const float *factor = factors.get();
        const int64_t stride = input.stride, pieces = input.pieces, apart = step;
        __m256 sums[MR];
        each<MR>([&](auto m) INLINE { sums[m] = _mm256_setzero_ps(); });
        for (int64_t c = 0; c < input.chunks; factor += parts) {
            __m256i found[MR];
            each<MR>([&](auto m) INLINE { found[m] = _mm256_setzero_si256(); });
            for (const int64_t last = std::min(c + per, input.chunks); c < last; c++) {
                if (std::is_same<Codes, ByteCodes>::value) fetched_bytes(bytes);
                else _mm_prefetch((const char *)bytes + FETCHED, _MM_HINT_T0);
                __m256i u[Codes::STEPS];
                codes.get(bytes, u);
                each<MR>([&](auto m) INLINE { found[m] = added<0, Codes::STEPS>(found[m], u, q + m * stride); });
                bytes += apart, q += Codes::COLUMNS;
            }
            each<MR>([&](auto m) INLINE {
                const float *from = factor + m * pieces;
                const __m256 by = SHORT ? _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), lanes)
                                        : _mm256_broadcast_ss(from);
                sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(found[m]), by, sums[m]);
            });
        }
        const float times = !Codes::DOUBLES && p.doubled ? 2.0f : 1.0f;
        each<MR>([&](auto m) INLINE { values[m][to] = total(sums[m]) * times + centers[m]; });
    }
    // Products are added up in pairs first: sums wait for one addition
    template <int FIRST, int COUNT> static inline INLINE __m256i dots(const __m256i *u, const int16_t *q) {
        if constexpr (COUNT == 1) return _mm256_madd_epi16(u[FIRST], loaded(q + 16 * FIRST));
        else return _mm256_add_epi32(dots<FIRST, COUNT / 2>(u, q), dots<FIRST + COUNT / 2, COUNT - COUNT / 2>(u, q));
    }
    template <int FIRST, int COUNT>
    static inline INLINE __m256i added(__m256i sum, const __m256i *u, const int16_t *q) {
#ifdef __AVXVNNI__
        each<COUNT>([&](auto i) INLINE { sum = _mm256_dpwssd_avx_epi32(sum, u[FIRST + i], loaded(q + 16 * i)); });
        return sum;
#else
        return _mm256_add_epi32(sum, dots<FIRST, COUNT>(u, q));
#endif
    }
    static inline float total(__m256 v) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_hadd_ps(half, half);
        return _mm_cvtss_f32(_mm_hadd_ps(half, half));
    }
};

template <class Codes, bool SHORT> static void wide_rows(const Product &p, const Weight &w, const Input &x,
                                                         const Output &out, int64_t first, int64_t last) {
    if (x.rows == 1) WideRows<Codes, SHORT, 1>(p, w, x, out).run(first, last);
    else if (x.rows == 2) WideRows<Codes, SHORT, 2>(p, w, x, out).run(first, last);
    else WideRows<Codes, SHORT, 4>(p, w, x, out).run(first, last);
}

// Whether pieces are whole chunks, or chunks whole pieces: results for up to four rows then
template <class Codes> static bool few_of(const Product &p, const Weight &w, const Input &x, const Output &out,
                                          int64_t first, int64_t last) {
    if (p.piece % Codes::COLUMNS == 0) return wide_rows<Codes, false>(p, w, x, out, first, last), true;
    if constexpr (Codes::LANE > 0)
        if (p.piece % Codes::LANE == 0 && Codes::COLUMNS % p.piece == 0)
            return wide_rows<Codes, true>(p, w, x, out, first, last), true;
    return false;
}
template <int D> static bool few_wide(const Product &p, const Weight &w, const Input &x, const Output &out,
                                      int64_t first, int64_t last) {
    if constexpr (D == RAW) {
        return few_of<ByteCodes>(p, w, x, out, first, last);
    } else if constexpr (D == PACKED) {
        if (p.bits == 2) return few_of<MaskedCodes<2>>(p, w, x, out, first, last);
        if (p.bits == 4) return few_of<MaskedCodes<4>>(p, w, x, out, first, last);
    }
    if constexpr (D != RAW) return few_of<MovedCodes<D>>(p, w, x, out, first, last);
}

#endif
