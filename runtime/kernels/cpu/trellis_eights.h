// States of eight numbers at a time, and the values of those that are computed, with AVX2.

#pragma once

#include "streamed_codes.h"
#include "trellis_states.h"

#if !LINEAR && DEPOSITS && defined(__AVX2__)
#define EIGHT_STATES 1

// Digits of eight numbers are moved to bytes, turned around and joined again: the latest is then the lowest, and
// every state is a few bits of one word.
class EightStates {
    uint64_t digits;
    __m256i spread, shifts, mask;
    int bits, known;  // digits before the first number of which a state has some

  public:
    explicit EightStates(const TrellisPlan &plan)
        : digits(0x0101010101010101 * ((1u << plan.bits) - 1)), mask(_mm256_set1_epi32((1 << plan.state_bits) - 1)),
          bits(plan.bits), known((plan.state_bits + plan.bits - 1) / plan.bits - 1) {
        uint8_t from[32];
        int32_t shift[8];
        for (int i = 0; i < 8; i++) {
            int bit = (7 - i) * bits;
            shift[i] = bit % 8;
            for (int j = 0; j < 4; j++) from[4 * i + j] = (uint8_t)(bit / 8 + j);
        }
        spread = _mm256_loadu_si256((const __m256i *)from), shifts = _mm256_loadu_si256((const __m256i *)shift);
    }
    // Numbers from the byte `bytes` on, `count` of them, a multiple of eight
    template <class Use> inline void get(const uint8_t *bytes, int64_t count, Use use) const {
        const EightStates here = *this;  // so that stores do not reach it
        uint64_t last = before(bytes);
        for (int64_t i = 0; i < count; i += 8, bytes += here.bits) {
            uint64_t word;
            memcpy(&word, bytes, 8);
            word = _pext_u64(__builtin_bswap64(_pdep_u64(word, here.digits)), here.digits);
            last = last << 8 * here.bits | word;
            __m256i state = _mm256_shuffle_epi8(_mm256_set1_epi64x((int64_t)last), here.spread);
            use(i, _mm256_and_si256(_mm256_srlv_epi32(state, here.shifts), here.mask));
        }
    }

  private:
    uint64_t before(const uint8_t *bytes) const {
        uint32_t word, digit = (1u << bits) - 1;
        uint64_t last = 0;
        memcpy(&word, bytes - Bits::BEFORE, 4);
        for (int d = known; d > 0; d--) last = last << bits | (word >> (32 - d * bits) & digit);
        return last;
    }
};

// What `one_mad` and `three_inst` of wide processors are
static inline __m256 one_mad(__m256i state) {
    __m256i word = _mm256_mullo_epi32(state, _mm256_set1_epi32(34038481));
    word = _mm256_add_epi32(word, _mm256_set1_epi32(76625530));
    __m256i pairs = _mm256_maddubs_epi16(word, _mm256_set1_epi8(1));
    __m256i total = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(total, _mm256_set1_epi32(510)));
}
static inline __m256 three_inst(__m256i state) {
    __m256i word = _mm256_mullo_epi32(state, _mm256_set1_epi32(89226354));
    word = _mm256_add_epi32(word, _mm256_set1_epi32(64248484));
    word = _mm256_and_si256(word, _mm256_set1_epi32((int)0x8fff8fff));
    word = _mm256_xor_si256(word, _mm256_set1_epi32(0x3b603b60));
    auto widened = [](__m256i half) {  // float16 in the upper half, whose exponent is neither the least nor the most
        const __m256i sign = _mm256_set1_epi32((int)0x80000000), bias = _mm256_set1_epi32(112 << 23);
        __m256i size = _mm256_add_epi32(_mm256_srli_epi32(_mm256_andnot_si256(sign, half), 3), bias);
        return _mm256_castsi256_ps(_mm256_or_si256(size, _mm256_and_si256(sign, half)));
    };
    __m256i upper = _mm256_and_si256(word, _mm256_set1_epi32((int)0xffff0000));
    return _mm256_add_ps(widened(_mm256_slli_epi32(word, 16)), widened(upper));
}
#else
#define EIGHT_STATES 0
#endif
