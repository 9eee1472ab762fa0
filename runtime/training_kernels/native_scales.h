// Scales: what is measured of numbers, and how a scale follows from it and is rounded as it is stored.

#pragma once

#include "native_plan.h"
#include "native_vectors.h"

template <int S> static inline float size_of(float v) { return S == RMS ? v * v : std::fabs(v); }
template <int S> static inline V size_of(V v) { return S == RMS ? v * v : magnitude(v); }

// The sum of what `size_of` gives: in four sums, those of long rows in pieces that are added in double precision
template <int S> static inline Partial summed(const float *p, int64_t count) {
    double sum = 0;
    int64_t i = 0;
    while (i + W <= count) {
        int64_t end = count < i + 4096 ? count : i + 4096;
        V sums[4] = {};
        for (; i + 4 * W <= end; i += 4 * W)
            for (int k = 0; k < 4; k++) sums[k] += size_of<S>(load(p + i + k * W));
        for (; i + W <= end; i += W) sums[0] += size_of<S>(load(p + i));
        V all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        sum += over_lanes(all, [](V a, V b) { return a + b; })[0];
    }
    for (; i < count; i++) sum += size_of<S>(p[i]);
    return {sum, 0, 0};
}

static inline Partial largest(const float *p, int64_t count) {
    I most[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W)
        for (int k = 0; k < 4; k++) most[k] = greater(bits(magnitude(load(p + i + k * W))), most[k]);
    for (; i + W <= count; i += W) most[0] = greater(bits(magnitude(load(p + i))), most[0]);
    most[0] = greater(greater(most[0], most[1]), greater(most[2], most[3]));
    int32_t found = over_lanes(most[0], greater)[0];
    for (; i < count; i++) {
        int32_t size = as_int(p[i]) & 0x7fffffff;
        found = size > found ? size : found;
    }
    return {0, 0, as_float(found)};
}

static inline Partial lowest_and_highest(const float *p, int64_t count) {  // NaN in `high` where there is one
    V low = splat(p[0]), high = low, wrong = V{};
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        V v = load(p + i);
        low = v < low ? v : low, high = v > high ? v : high, wrong = v == v ? wrong : v;
    }
    Partial found = {0, p[0], p[0]};
    for (int k = 0; i && k < W; k++) {
        found.low = low[k] < found.low ? low[k] : found.low, found.high = high[k] > found.high ? high[k] : found.high;
        found.sum += wrong[k];
    }
    for (; i < count; i++) {
        found.low = p[i] < found.low ? p[i] : found.low, found.high = p[i] > found.high ? p[i] : found.high;
        found.sum += p[i] == p[i] ? 0 : p[i];
    }
    if (found.sum != found.sum) found.high = NAN;
    return found;
}

static inline Partial measured(const Plan &plan, const float *p, int64_t count) {
    if (plan.statistic == RMS) return summed<RMS>(p, count);
    if (plan.statistic == ABSMEAN) return summed<ABSMEAN>(p, count);
    return plan.statistic == SIGNED ? lowest_and_highest(p, count) : largest(p, count);
}

static inline Partial joined(const Partial &a, const Partial &b) {
    bool unknown = a.high != a.high || b.high != b.high;
    float high = unknown ? NAN : a.high > b.high ? a.high : b.high;
    return {a.sum + b.sum, a.low < b.low ? a.low : b.low, high};
}

static inline float to_half(float scale) {  // to nearest even, of what float16 holds
    float size = std::fabs(scale);
    if (size < 0x1p-14f) return std::copysign((size + 0.5f) - 0.5f, scale);
    int32_t i = as_int(scale);
    return scale != scale ? scale : as_float((i + 0xfff + ((i >> 13) & 1)) & ~0x1fff);
}
static inline float to_bfloat(float scale) {
    int32_t i = as_int(scale);
    return scale != scale ? scale : as_float((int32_t)((uint32_t)i + 0x7fff + ((i >> 16) & 1)) & ~0xffff);
}

struct Binary { float fraction; int exponent; };  // fraction * 2^exponent, 1 <= fraction < 2

static inline Binary binary(float size) {  // of a number above zero
    int below = 0;
    if (size < 0x1p-126f) size *= 0x1p64f, below = 64;
    int32_t i = as_int(size);
    return {as_float((i & 0x7fffff) | 0x3f800000), (i >> 23) - 127 - below};
}

static inline float power_of_two(int exponent) {  // as e8m0 has them, from -127 to 127
    if (exponent <= -127) return 0x1p-127f;
    return as_float(((exponent > 127 ? 127 : exponent) + 127) << 23);
}

static inline float power_scale(const Plan &plan, float largest) {
    if (!(largest > 0)) return 0x1p-127f;
    Binary found = binary(largest);
    bool reached = plan.power_from_border ? found.fraction >= plan.power_border : found.fraction > plan.power_border;
    return power_of_two(found.exponent - 1 + reached + plan.power_offset);
}

static inline float stored_scale(const Plan &plan, float scale) {
    if (plan.stored == E8M0) {
        if (!(scale > 0)) return 0x1p-127f;
        Binary found = binary(scale);
        return power_of_two(found.exponent + (found.fraction >= (float)1.4142135623730950488));
    }
    float least = plan.scale_least, most = plan.scale_most;
    if (plan.statistic == SIGNED) {
        scale = std::fabs(scale) < least ? least : scale;
        scale = scale < -most ? -most : scale;
    } else
        scale = scale < least ? least : scale;
    scale = scale > most ? most : scale;
    return plan.stored == FLOAT16 ? to_half(scale) : plan.stored == BFLOAT16 ? to_bfloat(scale) : scale;
}

static inline float scale_of(const Plan &plan, const Partial &found, int64_t count) {
    float scale = found.high / plan.divisor;
    if (plan.statistic == SIGNED) scale = (-found.low > found.high ? found.low : found.high) / plan.divisor;
    if (plan.statistic == RMS) scale = std::sqrt((float)(found.sum / (double)count)) * plan.multiplier;
    if (plan.statistic == ABSMEAN) scale = (float)(found.sum / (double)count);
    if (plan.statistic == POWER) scale = power_scale(plan, found.high);
    scale = stored_scale(plan, scale);
    return plan.unit == 1.0f ? scale : scale * plan.unit;
}

static inline int64_t survivors_of(const Plan &plan, int64_t count) {
    return plan.of ? count / plan.of * plan.kept : count;
}
