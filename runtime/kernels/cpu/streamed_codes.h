// Codes of any width, from any bit of a stream on.

#pragma once

#include "streamed.h"

// A number of `bits` bits (31 at most) at bit `at` of bytes that end at `end`
static inline uint32_t number_at(const uint8_t *bytes, const uint8_t *end, int64_t at, int bits) {
    const uint8_t *from = bytes + (at >> 3);
    uint64_t word = 0;
    if (end - from >= 8)
        memcpy(&word, from, 8);
    else if (end > from)
        memcpy(&word, from, (size_t)(end - from));
    return (uint32_t)(word >> (at & 7)) & ((1u << bits) - 1);
}

// Codes of 1 to 8 bits from any bit on
#if !WIDE && defined(__BMI2__) && defined(__x86_64__)
#define DEPOSITS 1  // bits of a word are moved to places of a mask
#else
#define DEPOSITS 0
#endif

class Codes {
    int bits;
    const uint8_t *end;
#if WIDE
    __m512i spread, shifts;
#endif

  public:
    Codes(int bits, const uint8_t *end) : bits(bits), end(end) {
#if WIDE
        uint8_t from[64], shift[64];
        for (int i = 0; i < 64; i++) {
            from[i] = (uint8_t)(i / 8 * bits + i % 8);
            shift[i] = (uint8_t)(i % 8 * bits);
        }
        spread = _mm512_loadu_si512(from), shifts = _mm512_loadu_si512(shift);
#endif
    }
#if WIDE
    // 64 codes from bit `at` of a row on; of their bytes only the lower bits are codes
    inline __m512i get(const uint8_t *row, int64_t at) const {
        const uint8_t *from = row + (at >> 3);
        int64_t there = end - from;
        __m512i raw;
        if (there >= 64)
            raw = _mm512_loadu_si512(from);
        else
            raw = _mm512_maskz_loadu_epi8(there > 0 ? ~0ull >> (64 - there) : 0, from);
        if (bits == 8) return raw;
        __m512i moved = _mm512_add_epi8(shifts, _mm512_set1_epi8((char)(at & 7)));
        return _mm512_multishift_epi64_epi8(moved, _mm512_permutexvar_epi8(spread, raw));
    }
#endif
    // `count` codes as bytes, of which only the lower bits are codes; written to the next multiple of 64
    inline void get(const uint8_t *row, int64_t first, int64_t count, uint8_t *out) const {
#if WIDE
        for (int64_t i = 0; i < count; i += 64) _mm512_storeu_si512(out + i, get(row, (first + i) * bits));
#else
        int64_t i = 0;
#if DEPOSITS
        if (bits == 8) {
            memcpy(out, row + first, (size_t)count);
            return;
        }
        const uint64_t bytes = 0x0101010101010101 * ((1u << bits) - 1);
        const uint8_t *from = row + (first * bits >> 3);
        for (int shift = first * bits & 7; i + 8 <= count && end - from >= 8; i += 8, from += bits) {
            uint64_t word;  // eight codes, which begin at the same bit of a byte as the next eight
            memcpy(&word, from, 8);
            word = _pdep_u64(word >> shift, bytes);
            memcpy(out + i, &word, 8);
        }
#endif
        for (; i < count; i++) out[i] = (uint8_t)number_at(row, end, (first + i) * bits, bits);
#endif
    }
};
