// Survivors moved to their places, zeros elsewhere.

#pragma once

#include "sparse_survivors.h"

#if WIDE && defined(__AVX512VBMI2__)
#define EXPANDS 1

// Expanding from memory takes several times as long as from a register, so that the load is kept apart.
static inline __m512i apart(const void *from) {
    __m512i numbers = _mm512_loadu_si512(from);
    asm("" : "+v"(numbers));
    return numbers;
}

static inline void expanded(const uint8_t *mask, const float *from, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i += 16, out += 16) {
        uint16_t here;
        memcpy(&here, mask + (i >> 3), 2);
        _mm512_storeu_si512(out, _mm512_maskz_expand_epi32(here, apart(from)));
        from += __builtin_popcount(here);
    }
}

static inline void expanded(const uint8_t *mask, const Bfloat *from, int64_t count, Bfloat *out) {
    for (int64_t i = 0; i < count; i += 32, out += 32) {
        uint32_t here;
        memcpy(&here, mask + (i >> 3), 4);
        _mm512_storeu_si512(out, _mm512_maskz_expand_epi16(here, apart(from)));
        from += __builtin_popcount(here);
    }
}

// Levels of codes as bfloat16, in their places
class Levels {
    bool many;
    __m512i low[4], high[4], first, second;

  public:
    explicit Levels(const Plan &plan) : many(plan.bits > 6) {
        for (int t = 0; t < 4; t++) {
            uint8_t lower[64], upper[64];
            for (int i = 0; i < 64; i++) {
                Bfloat word;
                put(&word, plan.levels[t * 64 + i]);
                lower[i] = (uint8_t)word, upper[i] = (uint8_t)(word >> 8);
            }
            low[t] = _mm512_loadu_si512(lower), high[t] = _mm512_loadu_si512(upper);
        }
        first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    }
    void get(const uint8_t *mask, const Codes &codes, const uint8_t *row, int64_t at, int bits, int64_t count,
             Bfloat *out) const {
        if (many) return each<true>(mask, codes, row, at, bits, count, out);
        each<false>(mask, codes, row, at, bits, count, out);
    }

  private:
    template <bool MANY>
    void each(const uint8_t *mask, const Codes &codes, const uint8_t *row, int64_t at, int bits, int64_t count,
              Bfloat *out) const {
        const Levels here = *this;  // so that stores do not reach it
        for (int64_t i = 0; i < count; i += 64, out += 64) {
            uint64_t places;
            memcpy(&places, mask + (i >> 3), 8);
            __m512i code = _mm512_maskz_expand_epi8(places, codes.get(row, at * bits));
            __m512i lower = look_up<MANY>(code, here.low), upper = look_up<MANY>(code, here.high);
            lower = _mm512_maskz_mov_epi8(places, lower), upper = _mm512_maskz_mov_epi8(places, upper);
            __m512i even = _mm512_unpacklo_epi8(lower, upper), odd = _mm512_unpackhi_epi8(lower, upper);
            _mm512_storeu_si512(out, _mm512_permutex2var_epi64(even, here.first, odd));
            _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi64(even, here.second, odd));
            at += __builtin_popcountll(places);
        }
    }
    template <bool MANY> static inline __m512i look_up(__m512i codes, const __m512i *table) {
        if constexpr (!MANY) return _mm512_permutexvar_epi8(codes, table[0]);
        __m512i low = _mm512_permutex2var_epi8(table[0], codes, table[1]);
        __m512i high = _mm512_permutex2var_epi8(table[2], codes, table[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
    }
};
#else
#define EXPANDS 0

// For each mask of eight numbers, which survivor is where; 0x80 where none is
struct Moves {
    uint8_t byte[256][8];
    uint8_t word[256][16];  // as bytes of numbers of 16 bits
    uint8_t upper[256][32];  // as those of numbers of 32 bits whose upper half they are

    Moves() {
        for (int mask = 0; mask < 256; mask++) {
            int next = 0;
            for (int i = 0; i < 8; i++) {
                bool here = mask >> i & 1;
                byte[mask][i] = here ? (uint8_t)next : 0x80;
                word[mask][2 * i] = here ? (uint8_t)(2 * next) : 0x80;
                word[mask][2 * i + 1] = here ? (uint8_t)(2 * next + 1) : 0x80;
                upper[mask][4 * i] = upper[mask][4 * i + 1] = 0x80;
                memcpy(upper[mask] + 4 * i + 2, word[mask] + 2 * i, 2);
                next += here;
            }
        }
    }
};

static inline const Moves &moves() {
    static const Moves known;
    return known;
}

template <class Number> static inline void spread_out(const uint8_t *mask, const Number *from, int64_t count, Number *out) {
    for (int64_t i = 0; i < count; i++) {
        int here = mask[i >> 3] >> (i & 7) & 1;
        out[i] = here ? *from : Number(0);
        from += here;
    }
}

static inline void expanded(const uint8_t *mask, const float *from, int64_t count, float *out) {
#if defined(__AVX2__)
    const Moves &known = moves();
    for (int64_t i = 0; i < count; i += 8, out += 8) {
        uint8_t here = mask[i >> 3];
        __m256i lanes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)known.byte[here]));
        __m256i moved = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)from), lanes);
        _mm256_storeu_si256((__m256i *)out, _mm256_andnot_si256(_mm256_srai_epi32(lanes, 31), moved));
        from += __builtin_popcount(here);
    }
#else
    spread_out(mask, from, count, out);
#endif
}

static inline void expanded(const uint8_t *mask, const Bfloat *from, int64_t count, Bfloat *out) {
#if defined(__SSSE3__)
    const Moves &known = moves();
    for (int64_t i = 0; i < count; i += 8, out += 8) {
        uint8_t here = mask[i >> 3];
        __m128i lanes = _mm_loadu_si128((const __m128i *)known.word[here]);
        _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from), lanes));
        from += __builtin_popcount(here);
    }
#else
    spread_out(mask, from, count, out);
#endif
}

#if defined(__AVX2__)
#define WIDENS 1

// Survivors of bfloat16 as float32: one shuffle moves, widens and clears
static inline void widened(const uint8_t *mask, const Bfloat *from, int64_t count, float *out) {
    const Moves &known = moves();
    for (int64_t i = 0; i < count; i += 8, out += 8) {
        uint8_t here = mask[i >> 3];
        __m256i numbers = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
        __m256i bytes = _mm256_loadu_si256((const __m256i *)known.upper[here]);
        _mm256_storeu_si256((__m256i *)out, _mm256_shuffle_epi8(numbers, bytes));
        from += __builtin_popcount(here);
    }
}
#endif
#endif
#ifndef WIDENS
#define WIDENS 0
#endif
