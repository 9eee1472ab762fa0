// Codebooks of up to 256 numbers, pairs or fours, looked up in registers as bytes of bfloat16.

#pragma once

#include "codebook_tables.h"

#if WIDE
template <int SIZE> class Planes {
    static constexpr int TABLES = 2 * SIZE;
    __m512i spread, shifts, table[TABLES][4];
    int bits;

  public:
    explicit Planes(const BookPlan &plan) : bits(plan.bits) {
        // Unpacking bytes to words, and these to pairs, moves groups of four: they are brought where they end in
        // order, each four in a half of a word of 64 bits. Once more, and it moves groups of two, of whole bytes.
        uint8_t from[64], shift[64];
        for (int i = 0; i < 64; i++) {
            if (SIZE == 4) {
                from[i] = (uint8_t)(i / 2 % 8 * 8 + i / 16 * 2 + i % 2), shift[i] = (uint8_t)(i % 8 * 8);
                continue;
            }
            int four = SIZE == 2 ? i / 4 % 4 * 4 + i / 16 : i / 16 * 2 + i / 4 % 2 + (i / 8 % 2) * 8;
            int bit = four * 4 * bits;
            from[i] = (uint8_t)(bit / 8 + i % 4);
            shift[i] = (uint8_t)(i / 4 % 2 * 32 + bit % 8 + i % 4 * bits);
        }
        spread = _mm512_loadu_si512(from), shifts = _mm512_loadu_si512(shift);
    }
    void take(const Tables<Bfloat> &tables) {
        for (int plane = 0; plane < TABLES; plane++) {
            uint8_t bytes[256];
            for (int i = 0; i < 256; i++) {
                Bfloat word = tables.table[(i & ((1 << bits) - 1)) * SIZE + plane / 2];
                bytes[i] = (uint8_t)(plane % 2 ? word >> 8 : word);
            }
            for (int t = 0; t < 4; t++) table[plane][t] = _mm512_loadu_si512(bytes + 64 * t);
        }
    }
    // The numbers of 64 codes at a time, `count` times; `rest` bytes may be read
    void get(const uint8_t *from, int64_t rest, int64_t count, Bfloat *out) const {
        const Planes here = *this;  // so that stores do not reach it
        for (int64_t i = 0; i < count; i++)
            here.one(from + i * 8 * bits, rest - i * 8 * bits, out + i * 64 * SIZE);
    }

  private:
    inline void one(const uint8_t *from, int64_t rest, Bfloat *out) const {
        __m512i codes;
        if (rest >= 64)  // masked loads start no prefetching
            codes = _mm512_loadu_si512(from);
        else
            codes = _mm512_maskz_loadu_epi8(rest > 0 ? ~0ull >> (64 - rest) : 0, from);
        codes = _mm512_permutexvar_epi8(spread, codes);
        codes = _mm512_multishift_epi64_epi8(shifts, codes);
        __mmask64 upper = _mm512_movepi8_mask(codes);
        __m512i plane[TABLES], low[SIZE], high[SIZE];
#pragma GCC unroll 8
        for (int p = 0; p < TABLES; p++) {
            __m512i first = _mm512_permutex2var_epi8(table[p][0], codes, table[p][1]);
            plane[p] = _mm512_mask_blend_epi8(upper, first, _mm512_permutex2var_epi8(table[p][2], codes, table[p][3]));
        }
#pragma GCC unroll 4
        for (int i = 0; i < SIZE; i++) {
            low[i] = _mm512_unpacklo_epi8(plane[2 * i], plane[2 * i + 1]);
            high[i] = _mm512_unpackhi_epi8(plane[2 * i], plane[2 * i + 1]);
        }
        if constexpr (SIZE == 1) {
            _mm512_storeu_si512(out, low[0]), _mm512_storeu_si512(out + 32, high[0]);
        } else if constexpr (SIZE == 2) {
            pairs(low[0], low[1], [&](int i, __m512i pair) { _mm512_storeu_si512(out + i * 32, pair); });
            pairs(high[0], high[1], [&](int i, __m512i pair) { _mm512_storeu_si512(out + 64 + i * 32, pair); });
        } else {
            fours(low, out), fours(high, out + 128);
        }
    }
    template <class Use> static inline void pairs(__m512i first, __m512i second, Use use) {
        use(0, _mm512_unpacklo_epi16(first, second)), use(1, _mm512_unpackhi_epi16(first, second));
    }
    static inline void fours(const __m512i *words, Bfloat *out) {
        __m512i first[2], second[2];
        pairs(words[0], words[1], [&](int i, __m512i pair) { first[i] = pair; });
        pairs(words[2 % SIZE], words[3 % SIZE], [&](int i, __m512i pair) { second[i] = pair; });
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            _mm512_storeu_si512(out + 64 * i, _mm512_unpacklo_epi32(first[i], second[i]));
            _mm512_storeu_si512(out + 64 * i + 32, _mm512_unpackhi_epi32(first[i], second[i]));
        }
    }
};
#endif
