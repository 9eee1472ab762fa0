// Dot products along columns: some rows of the weight with some of the input, block by block. The lanes of a vector
// are neighbouring columns of a row of the weight, or rows of it ACROSS a few columns.

#pragma once

#include "int8_words_cut.h"

#ifdef WORDS

struct Eight {  // sums in lanes
    alignas(32) int32_t lanes[8];
};

struct Factors {  // of blocks, from the first that is multiplied
    const float *scale, *input;  // of the weight; of the input, where it is grouped
    const int32_t *center, *sums;
    int64_t next_row, next_block;  // of the weight: of its vectors of rows, where they are ACROSS
    int64_t blocks;                // of a row of the input
    int32_t twice;                 // 1: centers have a half, and all is doubled
};

// Adds blocks to `sums` [MR, NR]: integers where rows are one piece, or else numbers. `u` is called with a row of
// the weight, or a vector of rows, and a step, and gives integers without a sign.
template <class N, bool EXACT, bool ACROSS, int NR, int MR, class Source>
static SEPARATE void add_blocks(const Source &u, const typename N::Number *q, int64_t stride, int64_t blocks,
                                int64_t width, int64_t steps, const Factors &by, Eight *sums) {
    auto number = [](const float *from) INLINE {
        return ACROSS ? _mm256_loadu_ps(from) : _mm256_broadcast_ss(from);
    };
    auto entered = [&](int64_t m, int64_t at) INLINE {
        if constexpr (!ACROSS) return loaded(q + m * stride + at * N::STEP);
        int32_t few;
        memcpy(&few, q + m * stride + at * N::LANE, 4);
        return _mm256_set1_epi32(few);
    };
    for (int64_t block = 0, at = 0; block < blocks; block++) {
        __m256i found[NR * MR];
        each<NR * MR>([&](auto i) INLINE { found[i] = _mm256_setzero_si256(); });
        for (const int64_t end = std::min(at + width, steps); at < end; at++) {
            __m256i some[NR];
            each<NR>([&](auto r) INLINE { some[r] = kept(u(r, at)); });
            each<MR>([&](auto m) INLINE {
                const __m256i v = kept(entered(m, at));
                each<NR>([&](auto r) INLINE { found[m * NR + r] = N::dots(found[m * NR + r], some[r], v); });
            });
        }
        each<NR * MR>([&](auto i) INLINE {
            constexpr int r = i % NR, m = i / NR;
            __m256i *to = (__m256i *)sums[i].lanes, sum = N::total(found[i]);
            if constexpr (EXACT) {
                _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), sum));
            } else {
                const int64_t at = r * by.next_row + block * by.next_block, place = m * by.blocks + block;
                const __m256i center = ACROSS ? loaded(by.center + at) : _mm256_set1_epi32(by.center[at]);
                const __m256i all = ACROSS ? _mm256_set1_epi32(by.sums[place]) : loaded(by.sums + 8 * place);
                sum = _mm256_sll_epi32(sum, _mm_cvtsi32_si128(by.twice));
                sum = _mm256_add_epi32(sum, N::centered(all, center));
                __m256 scale = number(by.scale + at);
                if (by.input) scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(by.input + place));
                const __m256 before = _mm256_load_ps((const float *)to);
                _mm256_store_ps((float *)to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, before));
            }
        });
    }
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
