// Dot products along columns: some rows of the weight with some of the input, block by block. The lanes of a vector
// are neighbouring columns of a row of the weight, or rows of it ACROSS a few columns.

#pragma once

#include "int8_words_cut.h"

#ifdef WORDS

struct Eight {  // sums in lanes
    alignas(32) int32_t lanes[8];
};

struct Factors {  // of blocks, from the first that is multiplied
    const float *scale, *input;    // of the weight; of the input, where it is grouped
    const int32_t *center;         // as N has it
    const char *sums;              // of the input, as N has them
    int64_t next_row, next_block;  // of the weight: of its vectors of rows, where they are ACROSS
    int64_t blocks, next_scale;    // of a row of the input
    bool exact, twice;             // all that is wanted are integers; centers are half a number more
    const int32_t *piece;          // of a block, that a lane belongs to
};

// Adds blocks to `sums` [MR, NR]: integers where rows are one piece, or else numbers. `u.at<PART>` gives integers
// without a sign, of a row of the weight or a vector of rows, and a unit. EXACT is what factors say, where it is
// known: many rows of input are a twentieth faster so.
template <class N, int PARTS, bool ACROSS, int NR, int MR, int EXACT = -1, class Source>
static SEPARATE void add_blocks(const Source &u, const typename N::Number *q, int64_t stride, int64_t blocks,
                                int64_t width, int64_t units, const Factors &factors, Eight *sums) {
    const Factors by = factors;          // of which no store makes one think that it changed
    const bool exact = EXACT < 0 ? by.exact : EXACT;
    constexpr bool HELD = NR * MR <= 4;  // by registers
    const __m256i piece = ACROSS || exact ? __m256i{} : loaded(by.piece);
    auto entered = [&](int64_t m, int64_t at) INLINE {
        if constexpr (!ACROSS) return loaded(q + m * stride + at * N::STEP);
        int32_t few;
        memcpy(&few, q + m * stride + at * N::LANE, 4);
        return _mm256_set1_epi32(few);
    };
    auto all_of = [&](int64_t place) INLINE {
        if constexpr (!ACROSS) return loaded(by.sums + 32 * place);
        int32_t few;
        memcpy(&few, by.sums + 4 * place, 4);
        return _mm256_set1_epi32(few);
    };
    auto number = [&](const float *from) INLINE {
        const __m256 v = _mm256_loadu_ps(from);
        return ACROSS ? v : _mm256_permutevar8x32_ps(v, piece);
    };
    auto center_of = [&](const int32_t *from) INLINE {
        const __m256i v = loaded(from);
        return ACROSS ? v : _mm256_permutevar8x32_epi32(v, piece);
    };
    __m256i held[HELD ? NR * MR : 1];
    each<HELD ? NR * MR : 0>([&](auto i) INLINE { held[i] = _mm256_load_si256((const __m256i *)sums[i].lanes); });
    for (int64_t block = 0, at = 0; block < blocks; block++) {
        __m256i found[NR * MR];
        each<NR * MR>([&](auto i) INLINE { found[i] = _mm256_setzero_si256(); });
        if (!exact)
            each<NR>([&](auto r) INLINE {
                const __m256i center = center_of(by.center + r * by.next_row + block * by.next_block);
                each<MR>([&](auto m) INLINE {
                    found[m * NR + r] = N::centered(all_of(m * by.blocks + block), center);
                });
            });
        for (const int64_t end = std::min(at + width, units); at < end; at++)
            each<PARTS>([&](auto part) INLINE {
                __m256i some[NR];
                each<NR>([&](auto r) INLINE { some[r] = kept(u.template at<part>(r, at)); });
                each<MR>([&](auto m) INLINE {
                    const __m256i v = kept(entered(m, at * PARTS + part));
                    each<NR>([&](auto r) INLINE { found[m * NR + r] = N::dots(found[m * NR + r], some[r], v); });
                });
            });
        each<NR * MR>([&](auto i) INLINE {
            constexpr int r = i % NR, m = i / NR;
            __m256i *to = HELD ? held + i : (__m256i *)sums[i].lanes, sum = N::total(found[i]);
            if (exact) {
                *to = _mm256_add_epi32(*to, sum);
            } else {
                if constexpr (sizeof(typename N::Sum) == 4)
                    if (by.twice)
                        sum = _mm256_add_epi32(_mm256_add_epi32(sum, sum), all_of(m * by.blocks + block));
                const int64_t at = r * by.next_row + block * by.next_block;
                __m256 scale = number(by.scale + at);
                if (by.input) {
                    const float *from = by.input + m * by.next_scale + (ACROSS ? block : block * by.next_block);
                    scale = _mm256_mul_ps(scale, ACROSS ? _mm256_broadcast_ss(from) : number(from));
                }
                *to = (__m256i)_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, (__m256)*to);
            }
        });
    }
    each<HELD ? NR * MR : 0>([&](auto i) INLINE { _mm256_store_si256((__m256i *)sums[i].lanes, held[i]); });
}

static inline int32_t total_of_integers(const Eight &v) {
    const __m128i *halves = (const __m128i *)v.lanes;
    __m128i half = _mm_add_epi32(_mm_load_si128(halves), _mm_load_si128(halves + 1));
    half = _mm_hadd_epi32(half, half);
    return _mm_cvtsi128_si32(_mm_hadd_epi32(half, half));
}
static inline float total_of_numbers(const Eight &v) {
    const float *lanes = (const float *)v.lanes;
    __m128 half = _mm_add_ps(_mm_load_ps(lanes), _mm_load_ps(lanes + 4));
    half = _mm_hadd_ps(half, half);
    return _mm_cvtss_f32(_mm_hadd_ps(half, half));
}

// Word i of eight rows in vector i
static inline INLINE void across(__m256i *v) {
    __m256i t[8];
    each<4>([&](auto i) INLINE {
        t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    });
    each<4>([&](auto k) INLINE {
        constexpr int i = k / 2, j = k % 2;
        v[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        v[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    });
    each<4>([&](auto i) INLINE {
        t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    });
    each<8>([&](auto i) INLINE { v[i] = t[i]; });
}

#endif
