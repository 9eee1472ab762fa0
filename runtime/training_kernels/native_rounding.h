// Rounding to the levels of a grid, and the test that lets gradients pass.

#pragma once

#include "native_plan.h"
#include "native_scales.h"
#include "native_vectors.h"

template <int R> struct Grid {  // its numbers in registers, out of the reach of what is stored meanwhile
    V lowest, highest, shift, top;
    I least;
    int32_t mantissa_bits;
    V levels[16], borders[16];
    int few;

    explicit Grid(const Plan &plan)
        : lowest(splat(plan.lowest)), highest(splat(plan.highest)), shift(splat(plan.shift)), top(splat(plan.top)),
          least(I{} + as_int(plan.least)), mantissa_bits(plan.mantissa_bits << 23), few(plan.few) {
        if constexpr (R == TABLE) {
            levels[0] = load(plan.levels), borders[0] = load(plan.borders);
#if EIGHT  // what the four steps of a search choose from, and levels, even and odd ones apart
            for (int i = 0; i < 8; i++) {
                levels[0][i] = plan.levels[2 * i], levels[1][i] = plan.levels[2 * i + 1];
                borders[0][i] = plan.borders[2 * i], borders[1][i] = plan.borders[(4 * i + 1) & 15];
            }
            borders[2] = splat(plan.borders[3]), borders[3] = splat(plan.borders[11]);
            borders[4] = splat(plan.borders[7]);
#elif !WIDE
            for (int i = 0; i < few; i++) levels[i] = splat(plan.levels[i]), borders[i] = splat(plan.borders[i]);
#endif
        }
    }

    inline V operator()(V x) const {  // the nearest level of a number in units of the scale; NaN stays
        const V middle = splat(0x1.8p23f);  // adding it rounds to nearest even
        if constexpr (R == NEAREST || R == FLOOR) {
            x = lowest > x ? lowest : x;
            x = highest < x ? highest : x;
            V whole = (x + middle) - middle;
            if constexpr (R == NEAREST) return whole;
            return (whole > x ? whole - 1.0f : whole) + shift;
        }
        if constexpr (R == FLOAT) {
            x = -top > x ? -top : x;
            x = top < x ? top : x;
            I binade = bits(x) & 0x7f800000;
#if WIDE
            I spacing = (binade > least ? binade : least) - mantissa_bits;
            V number = x * floats((254 << 23) - spacing);
            return ((number + middle) - middle) * floats(spacing);
#else
            // 1.5 * 2^23 times the spacing: adding it rounds to a multiple of that, half to even
            V multiples = floats(greater(binade, least) + ((23 << 23) + 0x400000 - mantissa_bits));
            return (x + multiples) - multiples;
#endif
        }
        if constexpr (R == TABLE) {
#if WIDE
            const __mmask16 all = 0xffff;
            __m512i at = _mm512_setzero_si512();
            for (int step = 8; step; step /= 2) {
                __m512i border = _mm512_add_epi32(at, _mm512_set1_epi32(step - 1));
                __m512 next = _mm512_maskz_permutexvar_ps(all, border, (__m512)borders[0]);
                __mmask16 above = _mm512_cmp_ps_mask((__m512)x, next, _CMP_GT_OQ);
                at = _mm512_mask_add_epi32(at, above, at, _mm512_set1_epi32(step));
            }
            V level = (V)_mm512_maskz_permutexvar_ps(all, at, (__m512)levels[0]);
#elif EIGHT
            I above = x > borders[4];
            I second = x > (above ? borders[3] : borders[2]);
            I at = -(above + above + second);
            I third = x > chosen(borders[1], at);
            at = at + at - third;
            V level = x > chosen(borders[0], at) ? chosen(levels[1], at) : chosen(levels[0], at);
#else
            V level = levels[0];
            for (int i = 0; i + 1 < few; i++) level = x > borders[i] ? levels[i + 1] : level;
#endif
            return x != x ? x : level;
        }
        return x;
    }
};

struct Widths { V moved, bound; };  // what a number may have moved by, and how large it may be

static inline Widths widths_of(const Plan &plan, float scale) {
    float bound = std::fabs(scale * plan.top) * plan.bound;
    if (plan.sharing == OF_TENSOR && plan.bfloat) bound = to_bfloat(bound);  // torch compares one number so
    return {splat(std::fabs(scale * plan.half_width) * plan.trust), splat(bound)};
}

struct Row {  // what becomes of a row: float32 numbers in, float32 numbers out (may be the same)
    const float *latent, *survivors;
    float *out;
    uint8_t *mask;      // zeroed
    const char *ahead;  // what is to be fetched meanwhile, the next row
    int ahead_bytes;    // of its numbers
};

template <int R, bool MASK, bool SPARSE> struct Rounder {
    const Grid<R> grid;
    const float *latent;
    const int32_t *stay;
    float *out;
    uint8_t *mask;
    const char *ahead;
    const int ahead_bytes;

    Rounder(const Plan &plan, const Row &row, const int32_t *stay)
        : grid(plan), latent(row.latent), stay(stay), out(row.out), mask(row.mask), ahead(row.ahead),
          ahead_bytes(row.ahead_bytes) {}

    inline V rounded(V x, I stays, V scale, const Widths &widths, const Widths &zeroed, uint32_t &word) const {
        V projected = x, width = widths.moved, limit = widths.bound;
        if constexpr (R != NONE) projected = grid(x / scale) * scale;
        if constexpr (SPARSE) {
            projected = floats(bits(projected) & stays);
            width = stays ? width : zeroed.moved, limit = stays ? limit : zeroed.bound;
        }
        if constexpr (MASK) word = passing(magnitude(projected - x), width, magnitude(x), limit);
        return projected;
    }

    // Numbers from `at` to `end`, which share a scale
    inline void operator()(int64_t at, int64_t end, float step, const Widths &widths, const Widths &zeroed) const {
        const V scale = splat(step);
        uint32_t word = 0;
        I stays = {};
        int64_t i = at;
        for (; i + W <= end; i += W) {
            __builtin_prefetch(ahead + ahead_bytes * i);
            if constexpr (SPARSE) memcpy(&stays, stay + i, sizeof stays);
            store(out + i, rounded(load(latent + i), stays, scale, widths, zeroed, word));
            if constexpr (MASK) put_bits(mask, i, word, W);
        }
        if (i == end) return;
        int64_t rest = end - i;
        if constexpr (SPARSE) memcpy(&stays, stay + i, (size_t)rest * 4);
        store_some(out + i, rounded(load_some(latent + i, rest), stays, scale, widths, zeroed, word), rest);
        if constexpr (MASK) put_bits(mask, i, word & ((1u << rest) - 1), rest);
    }
};
