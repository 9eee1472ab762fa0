// Codes of a weight to vectors of integers without a sign, from any number of bits.
//
// A word gets the byte or the two bytes in which its code lies, or its two codes. What is above is cleared, and the
// upper half of a product is what shifts each word down by its own count.

#pragma once

#include "int8_decode.h"
#include "int8_words.h"

#ifdef WORDS

template <class N, int D> class Unpacker {
    static constexpr int CODES = N::STEP / 16;  // in a word
    __m256i places, fields, factors, apart, table[4];
    int parts, between;

  public:
    const int64_t steps, bytes;  // of a row; of a step

    explicit Unpacker(const Product &p)
        : parts(p.bits > 4 ? 1 << (p.bits - 4) : 1), between(8 - p.bits), steps(over(p.columns, N::STEP)),
          bytes(N::STEP * p.bits / 8) {
        uint8_t place[32];
        uint16_t field[16], factor[16];
        const int bits = CODES * p.bits, ones = (1 << bits) - 1, code = ((1 << p.bits) - 1) << p.doubled;
        for (int i = 0; i < 16; i++) {
            const int byte = i * bits / 8, in = i * bits % 8, two = in + bits > 8, at = two ? in : in + 8;
            place[2 * i] = (uint8_t)(two ? byte : 0x80), place[2 * i + 1] = (uint8_t)(byte + two);
            field[i] = (uint16_t)(ones << at), factor[i] = (uint16_t)(1 << (16 - at + p.doubled));
        }
        places = ::loaded(place), fields = ::loaded(field), factors = ::loaded(factor);
        apart = _mm256_set1_epi16((short)(code | code << 8));
        for (int i = 0; i < 4; i++)
            table[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p.table + 16 * i)));
    }

    int64_t reach() const { return (steps - 1) * bytes + 16; }  // bytes that are read for a row

    inline INLINE __m256i operator()(const uint8_t *row, int64_t step) const {
        const __m128i read = _mm_loadu_si128((const __m128i *)(row + step * (D == RAW ? 16 : bytes)));
        if constexpr (D == RAW) return _mm256_cvtepu8_epi16(read);
        const __m256i spread = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(read), places);
        __m256i codes = _mm256_mulhi_epu16(_mm256_and_si256(spread, fields), factors);
        if constexpr (CODES == 2) {
            const __m256i upper = _mm256_sll_epi16(codes, _mm_cvtsi32_si128(between));
            codes = _mm256_and_si256(_mm256_or_si256(codes, upper), apart);
        }
        return D == LOOKED_UP ? looked_up(codes) : codes;
    }

  private:
    inline INLINE __m256i looked_up(__m256i codes) const {
        if constexpr (CODES == 2) return _mm256_shuffle_epi8(table[0], codes);
        const __m256i at = _mm256_or_si256(codes, _mm256_set1_epi16((short)0x8000));  // upper bytes become 0
        const __m256i part = _mm256_srli_epi16(codes, 4);
        __m256i found = _mm256_setzero_si256();
        for (int i = 0; i < parts; i++) {
            const __m256i here = _mm256_cmpeq_epi16(part, _mm256_set1_epi16((short)i));
            found = _mm256_or_si256(found, _mm256_and_si256(_mm256_shuffle_epi8(table[i], at), here));
        }
        return found;
    }
};

#endif
