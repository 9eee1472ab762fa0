// Rotation by blocks of Sylvester's matrix, in place or from one tensor to another.

#pragma once

#include "native_plan.h"
#include "native_vectors.h"

template <int S, int... L> static inline V alternating(std::integer_sequence<int, L...>) {
    return V{(L & S ? -1.0f : 1.0f)...};
}
template <int S> static inline V turned(V v) {
    return fused(v, alternating<S>(Lanes{}), partners<S>(v, Lanes{}));
}
template <int B> static inline V turned_inside(V v) {  // blocks of B <= W
    if constexpr (B > 1) v = turned<1>(v);
    if constexpr (B > 2) v = turned<2>(v);
    if constexpr (B > 4) v = turned<4>(v);
    if constexpr (B > 8) v = turned<8>(v);
    return v;
}
template <int R> static inline void turned_across(V *v) {
    for (int stride = 1; stride < R; stride *= 2)
        for (int i = 0; i < R; i++)
            if (!(i & stride)) {
                V low = v[i], high = v[i + stride];
                v[i] = low + high, v[i + stride] = low - high;
            }
}

template <class In, class Out, int R, int B>
static void turn_blocks(const In *in, Out *out, int64_t size, V norm, const float *before, const float *after) {
    int64_t i = 0;
    for (; i + R * W <= size; i += R * W) {
        V v[R];
        for (int k = 0; k < R; k++) {
            v[k] = load(in + i + k * W);
            if (before) v[k] = v[k] * load(before + i + k * W);
            v[k] = turned_inside<B>(v[k]);
        }
        turned_across<R>(v);
        for (int k = 0; k < R; k++) {
            v[k] = v[k] * norm;
            if (after) v[k] = v[k] * load(after + i + k * W);
            store(out + i + k * W, v[k]);
        }
    }
    if (i < size) {  // blocks below a vector
        int64_t rest = size - i;
        V v = load_some(in + i, rest);
        if (before) v = v * load_some(before + i, rest);
        v = turned_inside<B>(v) * norm;
        if (after) v = v * load_some(after + i, rest);
        store_some(out + i, v, rest);
    }
}

#if !WIDE
// Blocks of two times as many vectors as the registers hold: the first half waits in `room`
template <class In, class Out>
static void turn_pairs(const In *in, Out *out, int64_t size, float *room, V norm, const float *before,
                       const float *after) {
    constexpr int HALF = DEEP * W;
    for (int64_t i = 0; i < size; i += 2 * HALF) {
        V v[DEEP];
        for (int half = 0; half < 2; half++) {
            const int64_t at = i + half * HALF;
            for (int k = 0; k < DEEP; k++) {
                v[k] = load(in + at + k * W);
                if (before) v[k] = v[k] * load(before + at + k * W);
                v[k] = turned_inside<W>(v[k]);
            }
            turned_across<DEEP>(v);
            for (int k = 0; !half && k < DEEP; k++) store(room + at + k * W, v[k]);
        }
        for (int k = 0; k < DEEP; k++) {
            const int64_t at = i + k * W;
            V first = load(room + at), low = (first + v[k]) * norm, high = (first - v[k]) * norm;
            if (after) low = low * load(after + at), high = high * load(after + at + HALF);
            store(out + at, low), store(out + at + HALF, high);
        }
    }
}
#endif

template <int R> static void turn_strided(float *p, int64_t size, int64_t stride) {
    for (int64_t start = 0; start < size; start += R * stride)
        for (int64_t i = start; i < start + stride; i += W) {
            V v[R];
            for (int k = 0; k < R; k++) v[k] = load(p + i + k * stride);
            turned_across<R>(v);
            for (int k = 0; k < R; k++) store(p + i + k * stride, v[k]);
        }
}

template <class In, class Out>
static void turn(const Plan &plan, const In *in, Out *out, float *room, const float *before, const float *after) {
    int64_t size = plan.size, block = plan.block;
    V norm = splat((float)(1.0 / std::sqrt((double)block)));
#if !WIDE
    if (block == 2 * DEEP * W) return turn_pairs(in, out, size, room, norm, before, after);
#endif
    if (block > DEEP * W) {
        turn_blocks<In, float, DEEP, W>(in, room, size, norm, before, nullptr);
        int64_t stride = DEEP * W;
        for (; 8 * stride <= block; stride *= 8) turn_strided<8>(room, size, stride);
        if (4 * stride <= block) turn_strided<4>(room, size, stride), stride *= 4;
        if (2 * stride <= block) turn_strided<2>(room, size, stride);
        if ((void *)out == (void *)room) return;
        int64_t i = 0;
        for (; i < size; i += W) store(out + i, after ? load(room + i) * load(after + i) : load(room + i));
        return;
    }
    if (block == 8 * W) return turn_blocks<In, Out, 8, W>(in, out, size, norm, before, after);
    if (block == 4 * W) return turn_blocks<In, Out, 4, W>(in, out, size, norm, before, after);
    if (block == 2 * W) return turn_blocks<In, Out, 2, W>(in, out, size, norm, before, after);
    if (block == W) return turn_blocks<In, Out, 1, W>(in, out, size, norm, before, after);
    if (block == 8) return turn_blocks<In, Out, 1, 8>(in, out, size, norm, before, after);
    if (block == 4) return turn_blocks<In, Out, 1, 4>(in, out, size, norm, before, after);
    turn_blocks<In, Out, 1, 2>(in, out, size, norm, before, after);
}
