// The states of a row that closes on itself: at each number a window of the bits so far, its own in the lowest.

#pragma once

#include "trellis_plan.h"

// The bits of a row with those before its first number, which are its last
class Bits {
    const TrellisPlan &plan;
    const uint8_t *all;
    std::unique_ptr<uint8_t[]> room;

  public:
    static constexpr int64_t BEFORE = 4, AFTER = 72;  // bytes that may be read before and after

    Bits(const TrellisPlan &plan, const uint8_t *all)
        : plan(plan), all(all), room(new uint8_t[padded(plan.columns) * plan.bits / 8 + BEFORE + AFTER]()) {}

    // The byte at which number `first` begins, a multiple of CHUNK
    const uint8_t *get(int64_t n, int64_t first, int64_t count) {
        const uint8_t *row = all + n * plan.row_bytes, *start = row + first * plan.bits / 8;
        int64_t needed = count * plan.bits / 8 + AFTER, there = all + plan.bytes - start;
        soon(start, needed - AFTER);
        if (first && needed <= there) return start;
        uint8_t *out = room.get() + BEFORE;
        memcpy(out, start, (size_t)std::min(needed, there));
        if (there < needed) memset(out + there, 0, (size_t)(needed - there));
        if (first)
            memcpy(out - BEFORE, start - BEFORE, BEFORE);
        else
            wrapped(row, out - BEFORE);
        return out;
    }

  private:
    void wrapped(const uint8_t *row, uint8_t *out) const {
        int64_t bits = plan.columns * plan.bits;
        if (bits % 8 == 0 && plan.row_bytes >= BEFORE) {
            memcpy(out, row + plan.row_bytes - BEFORE, BEFORE);
            return;
        }
        memset(out, 0, BEFORE);
        for (int64_t i = 1; i <= 8 * BEFORE; i++) {
            int64_t bit = bits - 1 - (i - 1) % bits, to = 8 * BEFORE - i;
            out[to >> 3] |= (uint8_t)((row[bit >> 3] >> (bit & 7) & 1) << (to & 7));
        }
    }
};

// One state after the other, on any processor
static inline void plain_states(const TrellisPlan &plan, const uint8_t *bytes, int64_t count, uint32_t *out) {
    uint32_t digit = (1u << plan.bits) - 1, mask = (uint32_t)((1ull << plan.state_bits) - 1), state = 0, before = 0;
    for (int i = 0; i < Bits::BEFORE; i++) before |= (uint32_t)bytes[i - Bits::BEFORE] << (8 * i);
    int digits = (plan.state_bits + plan.bits - 1) / plan.bits;
    for (int d = digits - 1; d > 0; d--) state = state << plan.bits | (before >> (32 - d * plan.bits) & digit);
    for (int64_t i = 0, at = 0; i < count; i++, at += plan.bits) {
        uint32_t word = bytes[at >> 3] | (uint32_t)bytes[(at >> 3) + 1] << 8;
        state = (state << plan.bits | (word >> (at & 7) & digit)) & mask;
        out[i] = state;
    }
}

#if WIDE && defined(__GFNI__)
#define LINEAR 1

// Bytes of the windows of 64 numbers, in the order from which unpacking to `SIZE` bytes makes numbers in order
template <int SIZE> class Windows {
    __m512i spread[WINDOWS], shifts[WINDOWS];

  public:
    explicit Windows(const TrellisPlan &plan) {
        for (int w = 0; w < WINDOWS; w++) {
            uint8_t from[64], shift[64];
            for (int i = 0; i < 64; i++) {
                int four = SIZE == 4 ? i / 4 % 4 * 4 + i / 16 : i / 16 * 2 + i / 4 % 2 + i / 8 % 2 * 8;
                int bit = 8 * (int)Bits::BEFORE + (four * 4 + 1) * plan.bits - 8 * (w + 1);
                from[i] = (uint8_t)(bit / 8 + i % 4);
                shift[i] = (uint8_t)(i / 4 % 2 * 32 + bit % 8 + i % 4 * plan.bits);
            }
            spread[w] = _mm512_loadu_si512(from), shifts[w] = _mm512_loadu_si512(shift);
        }
    }
    template <int COUNT> inline void get(const uint8_t *bytes, __m512i *out) const {
        __m512i raw = _mm512_loadu_si512(bytes - Bits::BEFORE);
#pragma GCC unroll 3
        for (int w = 0; w < COUNT; w++)
            out[w] = _mm512_multishift_epi64_epi8(shifts[w], _mm512_permutexvar_epi8(spread[w], raw));
    }
};

// A byte that is linear in those of the windows
template <int COUNT> static inline __m512i linear(const __m512i *windows, const __m512i *matrices, __m512i with) {
#pragma GCC unroll 3
    for (int w = 0; w < COUNT; w++)
        with = _mm512_xor_si512(with, _mm512_gf2p8affine_epi64_epi8(windows[w], matrices[w], 0));
    return with;
}

template <class Use> static inline void by_windows(const TrellisPlan &plan, Use use) {
    int bits = (plan.state_bits + plan.bits - 1) / plan.bits * plan.bits;
    if (bits <= 8) return use(std::integral_constant<int, 1>());
    if (bits <= 16) return use(std::integral_constant<int, 2>());
    use(std::integral_constant<int, 3>());
}

// States of 16 numbers at a time are handed to `use`
class WideStates {
    Windows<4> windows;
    __m512i matrices[WINDOWS][WINDOWS];

  public:
    explicit WideStates(const TrellisPlan &plan) : windows(plan) {
        for (int i = 0; i < WINDOWS; i++)
            for (int w = 0; w < WINDOWS; w++) matrices[i][w] = _mm512_set1_epi64((int64_t)plan.states[i][w]);
    }
    template <int COUNT, class Use> inline void get(const uint8_t *bytes, int64_t bits, int64_t count, Use use) const {
        const WideStates here = *this;  // so that stores do not reach it
        for (int64_t i = 0; i < count; i += 64) {
            __m512i window[WINDOWS], byte[WINDOWS], zero = _mm512_setzero_si512();
            here.windows.get<COUNT>(bytes + i / 8 * bits, window);
#pragma GCC unroll 3
            for (int b = 0; b < WINDOWS; b++)
                byte[b] = b < COUNT ? linear<COUNT>(window, here.matrices[b], zero) : zero;
            __m512i low[2] = {_mm512_unpacklo_epi8(byte[0], byte[1]), _mm512_unpackhi_epi8(byte[0], byte[1])};
            __m512i high[2] = {_mm512_unpacklo_epi8(byte[2], zero), _mm512_unpackhi_epi8(byte[2], zero)};
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                use(i + 32 * h, _mm512_unpacklo_epi16(low[h], high[h]));
                use(i + 32 * h + 16, _mm512_unpackhi_epi16(low[h], high[h]));
            }
        }
    }
};
#else
#define LINEAR 0
#endif
