// Codes of a weight to bytes: as they are, unpacked, or looked up in a table.

#pragma once

#include "int8_product.h"

enum Decoding { RAW, PACKED, LOOKED_UP };

static inline uint64_t apart(uint64_t word, int bits) {  // eight codes of a word, a byte for each
#ifdef __BMI2__
    return _pdep_u64(word, 0x0101010101010101ull * ((1u << bits) - 1));
#else
    uint64_t found = 0;
    for (int i = 0; i < 8; i++) found |= (word >> (i * bits) & ((1u << bits) - 1)) << (8 * i);
    return found;
#endif
}

// Codes from `first` (a multiple of eight), for processors without instructions for it
static inline void unpacked(const Product &p, const uint8_t *row, int64_t first, int64_t count, uint8_t *out) {
    if (p.bits == 8) {
        memcpy(out, row + first, (size_t)count);
        return;
    }
    for (int64_t i = 0, at = first / 8 * p.bits; i < count; i += 8, at += p.bits) {
        uint64_t word = 0;
        if (at + 8 <= p.row_bytes) memcpy(&word, row + at, 8);
        else memcpy(&word, row + at, (size_t)std::min((int64_t)p.bits, p.row_bytes - at));
        word = apart(word, p.bits) << p.doubled;
        if (count - i >= 8) memcpy(out + i, &word, 8);
        else memcpy(out + i, &word, (size_t)(count - i));
    }
    for (int64_t i = 0; p.looked_up && i < count; i++) out[i] = p.table[out[i]];
}

#ifdef DOTS
template <int D> struct Decoder {  // 64 codes at a time
    const Product &p;
    const int64_t steps;  // of a row
    const int64_t bytes;  // of a step
#ifdef __AVX512VBMI__
    __m512i spread, shift, mask, table;
#endif

    explicit Decoder(const Product &p) : p(p), steps(over(p.columns, STEP)), bytes(8 * p.bits) {
#ifdef __AVX512VBMI__
        uint8_t places[64], shifts[64];  // eight codes of b bits are b bytes: into a word of eight, and apart
        for (int i = 0; i < 64; i++)
            places[i] = (uint8_t)(std::min(i % 8, p.bits - 1) + i / 8 * p.bits),
            shifts[i] = (uint8_t)((i % 8 * p.bits - p.doubled) & 63);
        spread = _mm512_loadu_si512(places), shift = _mm512_loadu_si512(shifts);
        mask = _mm512_set1_epi8((char)(((1 << p.bits) - 1) << p.doubled));
        table = _mm512_loadu_si512(p.table);
#endif
    }

    // How many steps of a row may read a whole vector (masked loads are not seen by what fetches ahead)
    int64_t free(const uint8_t *row, const uint8_t *end) const {
        int64_t room = end - row - STEP;
        return room < 0 ? 0 : std::min(steps, room / bytes + 1);
    }
    inline INLINE __m512i operator()(const uint8_t *row, int64_t step) const {
        return decoded(_mm512_loadu_si512(row + step * (D == RAW ? STEP : bytes)), row, step);
    }
    inline INLINE __m512i careful(const uint8_t *row, int64_t step) const {
        int64_t left = std::min(bytes, p.row_bytes - step * bytes);
        return decoded(_mm512_maskz_loadu_epi8(~0ull >> (64 - left), row + step * bytes), row, step);
    }

  private:
    inline INLINE __m512i decoded(__m512i v, const uint8_t *row, int64_t step) const {
        if constexpr (D == RAW) return v;
#ifdef __AVX512VBMI__
        (void)row, (void)step;
        v = _mm512_permutexvar_epi8(spread, v);
        v = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, v), mask);
        return D == LOOKED_UP ? _mm512_permutexvar_epi8(v, table) : v;
#else
        alignas(64) uint8_t codes[STEP] = {};
        unpacked(p, row, step * STEP, std::min(STEP, p.columns - step * STEP), codes);
        return _mm512_load_si512(codes);
#endif
    }
};

// sum + u q by fours. GCC copies sums to and fro around the intrinsic, which takes twice as long
static inline INLINE __m512i dot(__m512i sum, __m512i u, __m512i q) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
    return sum;
}
#endif
