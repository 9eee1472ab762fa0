// Codes of a weight to words for few rows of input, moved as little as can be: what a word of the weight holds is
// masked where it lies, and inputs are put in the order in which that meets their columns.
//
// A chunk is COLUMNS of a row and STEPS vectors of words. Where what a lane of sums has are neighbours in the row,
// LANE columns, groups may be as small as that; else they are whole chunks.

#pragma once

#include "int8_words_decode.h"

#ifdef WORDS

template <int D> struct MovedCodes {  // of any bits, to their words
    static constexpr int COLUMNS = 64, STEPS = 4, LANE = 0;
    static constexpr bool DOUBLES = true;  // codes where they are to be
    const Unpacker<Words, D> unpack;

    explicit MovedCodes(const Product &p) : unpack(p) {}
    static int64_t bytes(const Product &p) { return 8 * p.bits; }
    static int64_t read(const Product &p) { return 6 * p.bits + 16; }
    static int column(int step, int word) { return 16 * step + word; }
    inline INLINE void get(const uint8_t *from, __m256i *out) const {
        each<STEPS>([&](auto i) INLINE { out[i] = unpack(from, i); });
    }
};
struct OfVector {  // chunks that are a vector in memory
    static constexpr bool DOUBLES = false;

    static int64_t bytes(const Product &) { return 32; }
    static int64_t read(const Product &) { return 32; }
};
struct ByteCodes : OfVector {
    static constexpr int COLUMNS = 32, STEPS = 2, LANE = 0;

    explicit ByteCodes(const Product &) {}
    static int column(int step, int word) { return 16 * step + word; }
    inline INLINE void get(const uint8_t *from, __m256i *out) const {
        each<2>([&](auto i) INLINE { out[i] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from + i)); });
    }
};
template <int B> struct MaskedCodes : OfVector {
    static constexpr int COLUMNS = 256 / B, STEPS = 16 / B, LANE = 32 / B;

    explicit MaskedCodes(const Product &) {}
    static int column(int step, int word) { return STEPS * word + step; }
    inline INLINE void get(const uint8_t *from, __m256i *out) const {
        const __m256i words = loaded(from), mask = _mm256_set1_epi16((1 << B) - 1);
        each<STEPS>([&](auto i) INLINE {
            out[i] = i ? _mm256_srli_epi16(words, i * B) : words;
            if (i < STEPS - 1) out[i] = _mm256_and_si256(out[i], mask);
        });
    }
};

#endif
