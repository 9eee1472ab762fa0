// The values of states: computed, where they are computed numbers, or looked up.

#pragma once

#include "trellis_eights.h"

#if LINEAR
// QTIP's 1MAD (2406.11235, algorithm 1) as integers: 147.8 times as large
static inline __m512 one_mad(__m512i state) {
    __m512i word = _mm512_mullo_epi32(state, _mm512_set1_epi32(34038481));
    word = _mm512_add_epi32(word, _mm512_set1_epi32(76625530));
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_set1_epi32(-510), word, _mm512_set1_epi8(1)));
}

// QTIP's 3INST (2406.11235, algorithm 2): the sum of two numbers of float16
static inline __m512 three_inst(__m512i state) {
    __m512i word = _mm512_mullo_epi32(state, _mm512_set1_epi32(89226354));
    word = _mm512_add_epi32(word, _mm512_set1_epi32(64248484));
    word = _mm512_and_si512(word, _mm512_set1_epi32((int)0x8fff8fff));
    word = _mm512_xor_si512(word, _mm512_set1_epi32(0x3b603b60));
    __m512 low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(word));
    return _mm512_add_ps(low, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(word, 16))));
}

// Values in the order of their ranks, which are linear in the state: to bfloat16 by lines between them
class Ranked {
    Windows<2> windows;
    __m512i matrices[2][WINDOWS], turned[2], base[2][2], slope[2][2], last[2][4];

  public:
    Ranked(const TrellisPlan &plan, const RankTables &tables) : windows(plan) {
        for (int i = 0; i < 2; i++) {
            for (int w = 0; w < WINDOWS; w++) matrices[i][w] = _mm512_set1_epi64((int64_t)plan.ranks[i][w]);
            turned[i] = _mm512_set1_epi8((char)(plan.turned >> (8 * i)));
            for (int half = 0; half < 2; half++) {
                base[i][half] = _mm512_loadu_si512(tables.base[i] + 64 * half);
                slope[i][half] = _mm512_loadu_si512(tables.slope[i] + 64 * half);
            }
            for (int t = 0; t < 4; t++) last[i][t] = _mm512_loadu_si512(tables.last[i] + 64 * t);
        }
    }
    template <int COUNT> void get(const uint8_t *bytes, int64_t bits, int64_t count, Bfloat *out) const {
        const Ranked here = *this;  // so that stores do not reach it
        const __m512i top = _mm512_set1_epi8(127), zero = _mm512_setzero_si512(), sign = _mm512_set1_epi16((short)0x8000);
        for (int64_t i = 0; i < count; i += 64, out += 64) {
            __m512i window[WINDOWS];
            here.windows.get<COUNT>(bytes + i / 8 * bits, window);
            __m512i fine = linear<COUNT>(window, here.matrices[0], here.turned[0]);
            __m512i rough = linear<COUNT>(window, here.matrices[1], here.turned[1]);
            __mmask64 end = _mm512_cmpeq_epi8_mask(_mm512_and_si512(rough, top), top), upper = _mm512_movepi8_mask(fine);
            __m512i start[2], rise[2];
#pragma GCC unroll 2
            for (int b = 0; b < 2; b++) {
                __m512i one = _mm512_permutex2var_epi8(here.last[b][0], fine, here.last[b][1]);
                __m512i other = _mm512_permutex2var_epi8(here.last[b][2], fine, here.last[b][3]);
                one = _mm512_mask_mov_epi8(one, upper, other);
                start[b] = _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(here.base[b][0], rough, here.base[b][1]), end, one);
                rise[b] = _mm512_maskz_permutex2var_epi8(~end, here.slope[b][0], rough, here.slope[b][1]);
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                auto words = [h](__m512i low, __m512i high) {
                    return h ? _mm512_unpackhi_epi8(low, high) : _mm512_unpacklo_epi8(low, high);
                };
                __m512i more = _mm512_mulhi_epu16(words(rise[0], rise[1]), words(zero, fine));
                __m512i value = _mm512_srli_epi16(_mm512_add_epi16(words(start[0], start[1]), more), 1);
                __m512i signs = words(zero, rough);
                _mm512_storeu_si512(out + 32 * h, _mm512_ternarylogic_epi32(value, signs, sign, 0xf8));  // a | b & c
            }
        }
    }
};
#endif

class Values {
    const TrellisPlan &plan;
    const float *table;
    std::unique_ptr<uint32_t[]> room;
#if LINEAR
    WideStates states;
#elif EIGHT_STATES
    EightStates states;
#endif

  public:
    Values(const TrellisPlan &plan, const float *table)
        : plan(plan), table(table), room(new uint32_t[padded(plan.columns)])
#if LINEAR || EIGHT_STATES
          , states(plan)
#endif
    {}
    // As float32, but for the unit
    void get(const uint8_t *bytes, int64_t count, float *out) {
#if LINEAR
        if (plan.code == ONE_MAD) return wide(bytes, count, out, [](__m512i state) { return one_mad(state); });
        if (plan.code == THREE_INST) return wide(bytes, count, out, [](__m512i state) { return three_inst(state); });
        const float *values = table;
        wide(bytes, count, out, [values](__m512i state) { return _mm512_i32gather_ps(state, values, 4); });
#elif EIGHT_STATES
        if (plan.code == ONE_MAD) return eights(bytes, count, out, [](__m256i state) { return one_mad(state); });
        if (plan.code == THREE_INST)
            return eights(bytes, count, out, [](__m256i state) { return three_inst(state); });
        const float *values = table;
        eights(bytes, count, out, [values](__m256i state) {
            uint64_t two[4];
            _mm256_storeu_si256((__m256i *)two, state);
            auto low = [&](int i) { return values[(uint32_t)two[i]]; };
            auto high = [&](int i) { return values[two[i] >> 32]; };
            return _mm256_setr_ps(low(0), high(0), low(1), high(1), low(2), high(2), low(3), high(3));
        });
#else
        plain_states(plan, bytes, count, room.get());
        for (int64_t i = 0; i < count; i++) out[i] = table[room[i]];
#endif
    }

  private:
#if LINEAR
    template <class Value> void wide(const uint8_t *bytes, int64_t count, float *out, Value value) const {
        by_windows(plan, [&](auto windows) {
            states.get<decltype(windows)::value>(bytes, plan.bits, count, [&](int64_t i, __m512i state) {
                _mm512_storeu_ps(out + i, value(state));
            });
        });
    }
#elif EIGHT_STATES
    template <class Value> void eights(const uint8_t *bytes, int64_t count, float *out, Value value) const {
        states.get(bytes, count, [&](int64_t i, __m256i state) { _mm256_storeu_ps(out + i, value(state)); });
    }
#endif
};
