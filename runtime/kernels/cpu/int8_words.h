// Products of integers for processors that multiply words, but do not add up products of bytes by fours: codes to
// words, or to bytes where they are so small that several products of two fit a word.

#pragma once

#include "int8_product.h"

#if !defined(DOTS) && defined(__AVX2__) && defined(__FMA__) && !defined(RHOC_PLAIN)
#define WORDS 1

constexpr int64_t WIDEST = 511, LONGEST_ROW = 32768;  // of integers; of rows whose sums, by 128, fit 32 bits
constexpr int NR = 2;  // rows, or vectors of rows, of the weight that are multiplied at once
constexpr int WIDEST_BYTE = 31;                       // four products of two, by 128, fit 16 bits

static inline int largest(const Product &p) {  // integer without a sign
    return p.looked_up ? *std::max_element(p.table, p.table + 64) : ((1 << p.bits) - 1) << p.doubled;
}
static inline int farthest(const Product &p) {  // integer from zero that a level can be, doubled where it has a half
    const int least = p.center - ((1 << p.zero_bits) - 1), most = p.center + largest(p) + 1;
    return (p.half != 0 ? 2 : 1) * std::max(-least, most);
}
static inline bool fit_words(const Product &p) {
    if (p.piece >= p.columns && p.columns > LONGEST_ROW && !p.wide) return false;
    return farthest(p) <= WIDEST && (p.half == 0 || p.half == .5f);
}
static inline bool fit_bytes(const Product &p) { return p.bits <= 4 && largest(p) <= WIDEST_BYTE; }

// GCC loads a vector anew for every product, and copies sums to and fro, unless it is told where they are
static inline INLINE __m256i kept(__m256i v) {
    asm("" : "+x"(v));
    return v;
}
// Codes of eight bits pass at the rate of the memory, and were measured as a quarter faster than with FETCHED
static inline INLINE void fetched_bytes(const uint8_t *from) { _mm_prefetch((const char *)from + 4096, _MM_HINT_T1); }
static inline INLINE __m256i loaded(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

// What is multiplied: `dots` are added up for `most` steps, which the sums of 128s of the input do in words too, and
// are then lanes of `total`
struct Words {
    typedef int16_t Number;
    typedef int32_t Sum;  // in a lane, of two products for each step
    static constexpr int STEP = 16, LANE = 2;
    static int64_t most(const Product &) { return 128; }
    static inline INLINE __m256i dots(__m256i sums, __m256i u, __m256i q) {
#ifdef __AVXVNNI__
        return _mm256_dpwssd_avx_epi32(sums, u, q);
#else
        const __m256i pairs = _mm256_madd_epi16(u, q);
        asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(pairs));
        return sums;
#endif
    }
    static inline INLINE __m256i total(__m256i sums) { return sums; }
    static int32_t center(int32_t center) { return center; }
    static inline INLINE __m256i centered(__m256i all, __m256i center) { return _mm256_mullo_epi32(all, center); }
};
struct Wide : Words {  // by inputs of 16 bits, of which few products fit a lane
    static int64_t most(const Product &p) { return std::min(128, (1 << 14) / farthest(p)); }
};
struct Bytes {
    typedef int8_t Number;
    typedef int16_t Sum;
    static constexpr int STEP = 32, LANE = 4;
    static int64_t most(const Product &p) {
        return std::min(64, INT16_MAX / (2 * 128 * std::max(largest(p), farthest(p))));
    }
    static inline INLINE __m256i dots(__m256i sums, __m256i u, __m256i q) {
        const __m256i pairs = _mm256_maddubs_epi16(u, q);
        asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(pairs));
        return sums;
    }
    static inline INLINE __m256i total(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
    static int32_t center(int32_t center) { return (center & 0xffff) * 0x10001; }  // in both words
    static inline INLINE __m256i centered(__m256i all, __m256i center) { return _mm256_mullo_epi16(all, center); }
};

#endif
