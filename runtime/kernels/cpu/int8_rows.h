// Integer products for a few rows of input: dot products along columns, the weight unpacked in registers.

#pragma once

#include "int8_decode.h"

#ifdef DOTS

static inline INLINE __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
static inline INLINE __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline INLINE __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
static inline INLINE __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
static inline INLINE __m128i add(__m128i a, __m128i b) { return _mm_add_epi32(a, b); }
static inline INLINE __m128 add(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
static inline INLINE __m512i mix(__m512i a, __m512i b) {
    return add(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
static inline INLINE __m512 mix(__m512 a, __m512 b) { return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
static inline INLINE __m512i mix_pairs(__m512i a, __m512i b) {
    return add(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
static inline INLINE __m512 mix_pairs(__m512 a, __m512 b) {
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}
static inline INLINE __m128i folded(__m512i v) {
    __m256i h = add(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return add(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
static inline INLINE __m128 folded(__m512 v) {
    __m256 h = add(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return add(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

// The sums of vectors, four at a time; what is beyond `COUNT` is not to be read
template <int COUNT, class X, class T> static inline INLINE void totals(const X *v, T *out) {
    each<(COUNT + 3) / 4>([&](auto i) INLINE {
        auto at = [&](auto j) INLINE -> X {
            if constexpr (4 * i + j < COUNT) return v[4 * i + j];
            return X{};
        };
        constexpr std::integral_constant<int, 0> zero{};
        constexpr std::integral_constant<int, 1> one{};
        constexpr std::integral_constant<int, 2> two{};
        constexpr std::integral_constant<int, 3> three{};
        auto four = folded(mix_pairs(mix(at(zero), at(one)), mix(at(two), at(three))));
        memcpy(out + 4 * i, &four, 16);
    });
}

template <int D, int NR> struct Lines {  // rows of the weight; the last one again beyond the end
    const uint8_t *from[NR];
    int64_t free;  // steps that may read whole vectors
    int64_t ahead;  // bytes from what is read to what is fetched meanwhile, and from that of a step to the next
    int64_t pace;

    Lines(const Product &p, const Weight &w, const Decoder<D> &decode, int64_t n, int64_t last, int64_t rows)
        : ahead(std::max(NR * p.row_bytes, FETCHED)), pace(NR * decode.bytes / over(rows, 4)) {
        for (int r = 0; r < NR; r++) from[r] = w.codes + std::min(n + r, last - 1) * p.row_bytes;
        free = decode.free(from[NR - 1], w.codes + p.rows * p.row_bytes);
    }
    template <bool MANY> inline INLINE void fetch(int64_t step) const {  // MANY: what is read is read many times
        const char *next = (const char *)from[0] + ahead + step * pace;
        constexpr int WIDTH = D == RAW ? NR : (NR + 1) / 2;
        constexpr auto HINT = MANY ? _MM_HINT_T0 : NR <= 2 ? _MM_HINT_NTA : _MM_HINT_T1;  // as measured on Zen 5
        each<(MANY && WIDTH > 2 ? 2 : WIDTH)>([&](auto i) INLINE { _mm_prefetch(next + STEP * i, HINT); });
    }
};

// A piece that is the whole row: exact sums [NR, MR]. A few sums are kept in two parts, not to wait for each other.
template <int D, int NR, int MR, bool MANY>
static SEPARATE void dots(const Product &p, const Decoder<D> &decode, const Lines<D, NR> &lines, const int8_t *q,
                          int32_t *out) {
    constexpr int COUNT = NR * MR, PARTS = COUNT < 8 ? 2 : 1;
    __m512i sums[PARTS * COUNT];
    each<PARTS * COUNT>([&](auto i) INLINE { sums[i] = _mm512_setzero_si512(); });
    const int64_t stride = p.stride;
    auto multiply = [&](auto part, const __m512i *u, int64_t at) INLINE {
        each<MR>([&](auto m) INLINE {
            __m512i v = _mm512_loadu_si512(q + m * stride + at * STEP);
            each<NR>([&](auto r) INLINE {
                sums[part * COUNT + m * NR + r] = dot(sums[part * COUNT + m * NR + r], u[r], v);
            });
        });
    };
    int64_t at = 0;
    for (; at + PARTS <= lines.free; at += PARTS) {
        each<PARTS>([&](auto part) INLINE {
            __m512i u[NR];
            lines.template fetch<MANY>(at + part);
            each<NR>([&](auto r) INLINE { u[r] = decode(lines.from[r], at + part); });
            multiply(part, u, at + part);
        });
    }
    for (; at < decode.steps; at++) {
        __m512i u[NR];
        each<NR>([&](auto r) INLINE { u[r] = decode.careful(lines.from[r], at); });
        multiply(std::integral_constant<int, 0>{}, u, at);
    }
    if constexpr (PARTS == 2) each<COUNT>([&](auto i) INLINE { sums[i] = add(sums[i], sums[COUNT + i]); });
    totals<COUNT>(sums, out);
}

// A row of several pieces: sums [NR, MR] times scales of the weight, and of the input where it is grouped.
// In lanes: accumulators begin with what the center adds to them.
struct Spread {
    const float *scale;  // of pieces, with a vector's room beyond the last
    const int32_t *center;
    int64_t stride;   // from a row of the weight to the next
    int64_t pace;     // pieces from a block to the next
    __m512i places;   // the piece of each lane, from the first of a block

    inline INLINE __m512 scales(int64_t row, int64_t block) const {
        return _mm512_permutexvar_ps(places, _mm512_loadu_ps(scale + row * stride + block * pace));
    }
    inline INLINE __m512i centers(int64_t row, int64_t block) const {
        return _mm512_permutexvar_epi32(places, _mm512_loadu_si512(center + row * stride + block * pace));
    }
};
template <bool GROUPED> static inline INLINE __m512 scaled(__m512 scale, const float *input) {
    if constexpr (GROUPED) return _mm512_mul_ps(scale, _mm512_loadu_ps(input));
    return scale;
}
template <int D, int NR, int MR, bool ZEROS, bool GROUPED, bool SHORT>  // SHORT: a block is one step
static SEPARATE void sums_of_pieces(const Product &p, const Decoder<D> &decode, const Lines<D, NR> &lines,
                                    const Input &x, const Cut &cut, int64_t first_m, const Spread &spread,
                                    float *out) {
    __m512 all[NR * MR];
    each<NR * MR>([&](auto i) INLINE { all[i] = _mm512_setzero_ps(); });
    const int8_t *q = x.codes + first_m * p.stride;
    const int32_t *begin = x.sums + first_m * cut.sums;
    const float *scales = GROUPED ? x.lanes + first_m * cut.sums : nullptr;
    const int64_t width = cut.block / STEP, stride = p.stride, apart = cut.sums;
    __m512i sums[NR * MR];
    int64_t at = 0;
    auto multiply = [&](const __m512i *u, int64_t at) INLINE {
        each<MR>([&](auto m) INLINE {
            __m512i v = _mm512_loadu_si512(q + m * stride + at * STEP);
            each<NR>([&](auto r) INLINE { sums[m * NR + r] = dot(sums[m * NR + r], u[r], v); });
        });
    };
    for (int64_t block = 0; block < cut.blocks; block++) {
        each<NR * MR>([&](auto i) INLINE {
            sums[i] = _mm512_loadu_si512(begin + i / NR * apart + 16 * block);
            if constexpr (ZEROS) sums[i] = _mm512_mullo_epi32(sums[i], spread.centers(i % NR, block));
        });
        const int64_t end = SHORT ? at + 1 : std::min(at + width, decode.steps);
        auto free_step = [&]() INLINE {
            __m512i u[NR];
            lines.template fetch<false>(at);
            each<NR>([&](auto r) INLINE { u[r] = decode(lines.from[r], at); });
            multiply(u, at++);
        };
        if constexpr (!SHORT)
            for (const int64_t whole = std::min(end, lines.free); at < whole;) free_step();
        else if (at < lines.free) free_step();
        for (; at < end; at++) {
            __m512i u[NR];
            each<NR>([&](auto r) INLINE { u[r] = decode.careful(lines.from[r], at); });
            multiply(u, at);
        }
        each<NR * MR>([&](auto i) INLINE {
            const __m512 both = scaled<GROUPED>(spread.scales(i % NR, block), scales + i / NR * apart + 16 * block);
            all[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), both, all[i]);
        });
    }
    totals<NR * MR>(all, out);
}

constexpr int TOGETHER = 24;  // rows of the weight that are finished at once

template <int D, int NR, bool FEW> class WholeRows {  // FEW: no more than FEW_ROWS of input, NR is 1 or 2
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Decoder<D> decode;
    Scales scales;
    int32_t exact[MOST_ROWS][TOGETHER], center[TOGETHER];
    float scale[TOGETHER];

  public:
    WholeRows(const Product &p, const Weight &w, const Input &x, const Output &out, const Cut &cut)
        : p(p), w(w), x(x), out(out), decode(p), scales(p, w, cut) {}

    void run(int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n += TOGETHER) {
            const int count = (int)std::min((int64_t)TOGETHER, last - n);
            for (int r = 0; r < count; r += NR) multiply(n + r, last, r);
            scales.column(n, count, scale, center);
            for (int64_t m = 0; m < x.rows; m++) {
                const int32_t all = x.sums[m];
                float sums[TOGETHER];
                for (int r = 0; r < count; r++)
                    sums[r] = ((float)(exact[m][r] + center[r] * all) + p.half * (float)all) * scale[r];
                finish(p, w, x, out, m, n, sums, count);
            }
        }
    }

  private:
    void multiply(int64_t n, int64_t last, int to) {
        Lines<D, NR> lines(p, w, decode, n, last, x.rows);
        for (int64_t m = 0; m < x.rows; lines.ahead += lines.pace * decode.steps) {
            const int rows = (int)std::min((int64_t)FEW_ROWS, x.rows - m);
            int32_t found[FEW_ROWS * NR + 3];
            const int8_t *q = x.codes + m * p.stride;
            each<FEW_ROWS>([&](auto i) INLINE {
                constexpr int MR = i + 1;
                if (rows == MR) dots<D, NR, MR, !FEW && MR == FEW_ROWS>(p, decode, lines, q, found);
            });
            for (int i = 0; i < rows; i++) memcpy(exact[m + i] + to, found + i * NR, 4 * NR);
            m += rows;
        }
    }
};

template <int D, bool ZEROS, bool GROUPED> class RowsInPieces {
    static constexpr int NR = 2;
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Cut &cut;
    const Decoder<D> decode;
    Scales scales;
    const int64_t stride;
    std::unique_ptr<float[]> scale;
    std::unique_ptr<int32_t[]> center;
    __m512i places;
    float sums[MOST_ROWS][TOGETHER];

  public:
    RowsInPieces(const Product &p, const Weight &w, const Input &x, const Output &out, const Cut &cut)
        : p(p), w(w), x(x), out(out), cut(cut), decode(p), scales(p, w, cut), stride(cut.pieces + 16),
          scale(new float[NR * stride]()), center(new int32_t[NR * stride]()) {
        int32_t piece[16];
        for (int i = 0; i < 16; i++) piece[i] = (int32_t)(cut.piece < STEP ? i * LANE / cut.piece : 0);
        places = _mm512_loadu_si512(piece);
    }

    void run(int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n += TOGETHER) {
            const int count = (int)std::min((int64_t)TOGETHER, last - n);
            for (int r = 0; r < count; r += NR) multiply(n + r, last, r);
            for (int64_t m = 0; m < x.rows; m++) finish(p, w, x, out, m, n, sums[m], count);
        }
    }

  private:
    template <int MR> void some(const Lines<D, NR> &lines, int64_t m, const Spread &spread, float *found) const {
        if (cut.block == STEP)
            sums_of_pieces<D, NR, MR, ZEROS, GROUPED, true>(p, decode, lines, x, cut, m, spread, found);
        else sums_of_pieces<D, NR, MR, ZEROS, GROUPED, false>(p, decode, lines, x, cut, m, spread, found);
    }
    void multiply(int64_t n, int64_t last, int to) {
        Lines<D, NR> lines(p, w, decode, n, last, x.rows);
        for (int r = 0; r < NR; r++) {
            scales.row(std::min(n + r, last - 1));
            memcpy(scale.get() + r * stride, scales.scale, 4 * (size_t)cut.pieces);
            if constexpr (ZEROS) memcpy(center.get() + r * stride, scales.center, 4 * (size_t)cut.pieces);
        }
        const Spread both = {scale.get(), center.get(), stride, std::max((int64_t)1, STEP / cut.piece), places};
        for (int64_t m = 0; m < x.rows; lines.ahead += lines.pace * decode.steps) {
            const int rows = (int)std::min((int64_t)FEW_ROWS, x.rows - m);
            float found[FEW_ROWS * NR + 3];
            each<FEW_ROWS>([&](auto i) INLINE {
                if (rows == i + 1) some<i + 1>(lines, m, both, found);
            });
            for (int i = 0; i < rows; i++) memcpy(sums[m + i] + to, found + i * NR, 4 * NR);
            m += rows;
        }
    }
};

#endif
