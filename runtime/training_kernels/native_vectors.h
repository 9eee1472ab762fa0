// Vectors of as many numbers as the processor has lanes, and the bits of masks.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define WIDE 1
constexpr int W = 16;  // numbers in a vector
#elif defined(__AVX2__)
#define EIGHT 1
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int DEEP = 8;  // vectors that a rotation holds in registers

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t Short __attribute__((vector_size(2 * W)));
typedef uint16_t Bfloat;
using Lanes = std::make_integer_sequence<int, W>;

static inline V splat(float value) { return value - V{}; }
static inline I bits(V v) { I i; memcpy(&i, &v, sizeof v); return i; }
static inline V floats(I i) { V v; memcpy(&v, &i, sizeof v); return v; }
static inline float as_float(int32_t i) { float f; memcpy(&f, &i, 4); return f; }
static inline int32_t as_int(float f) { int32_t i; memcpy(&i, &f, 4); return i; }
static inline V magnitude(V v) { return floats(bits(v) & 0x7fffffff); }

static inline V load(const float *p) { V v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, V v) { memcpy(p, &v, sizeof v); }

static inline V load(const Bfloat *p) {
#if EIGHT
    return floats((I)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
#else
    Short half;
    memcpy(&half, p, sizeof half);
    return floats((I)(__builtin_convertvector(half, U) << 16));
#endif
}

static inline U rounded_bits(V v) {  // to nearest even; the upper halves are bfloat16
    U u = (U)bits(v);
    U even = u + 0x7fff + ((u >> 16) & 1);
    return v != v ? U{} + 0x7fc00000u : even;
}
static inline V to_bfloat(V v) { return floats((I)(rounded_bits(v) & 0xffff0000u)); }
static inline void store(Bfloat *p, V v) {
    Short half = __builtin_convertvector(rounded_bits(v) >> 16, Short);
    memcpy(p, &half, sizeof half);
}

template <class T> static inline V load_some(const T *p, int64_t count) {
    T part[W] = {};
    memcpy(part, p, (size_t)count * sizeof(T));
    return load(part);
}
template <class T> static inline void store_some(T *p, V v, int64_t count) {
    T part[W];
    store(part, v);
    memcpy(p, part, (size_t)count * sizeof(T));
}

template <class In, class Out> static void copied(const In *in, Out *out, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, load(in + i));
    if (i < count) store_some(out + i, load_some(in + i, count - i), count - i);
}

template <int S, int... L> static inline V partners(V v, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(v, v, (L ^ S)...);
}

#if EIGHT
static inline V chosen(V table, I at) { return (V)_mm256_permutevar8x32_ps((__m256)table, (__m256i)at); }
#endif

static inline I greater(I a, I b) { return a > b ? a : b; }

template <class X, class F> static inline X over_lanes(X x, F f) {  // f of all lanes, in every lane
    if constexpr (W > 8) x = f(x, (X)partners<8>((V)x, Lanes{}));
    if constexpr (W > 4) x = f(x, (X)partners<4>((V)x, Lanes{}));
    x = f(x, (X)partners<2>((V)x, Lanes{}));
    return f(x, (X)partners<1>((V)x, Lanes{}));
}

// a * b + c, rounded once where the processor does that
static inline V fused(V a, V b, V c) {
#if WIDE
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline uint32_t passing(V moved, V width, V size, V bound) {  // bit i: lane i passes both tests
#if WIDE
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask((__m512)moved, (__m512)width, _CMP_LE_OQ), (__m512)size,
                                   (__m512)bound, _CMP_LE_OQ);
#elif defined(__AVX2__)
    I both = (moved <= width) & (size <= bound);
    return (uint32_t)_mm256_movemask_ps((__m256)both);
#elif defined(__SSE2__)
    I both = (moved <= width) & (size <= bound);
    return (uint32_t)_mm_movemask_ps((__m128)both);
#else
    I both = (moved <= width) & (size <= bound);
    uint32_t word = 0;
    for (int i = 0; i < W; i++) word |= (uint32_t)(both[i] & 1) << i;
    return word;
#endif
}

// Bits of a mask: bit i % 8 of byte i / 8

template <int... L> static inline I powers(std::integer_sequence<int, L...>) { return I{(1 << L)...}; }
static inline V ones_where(uint32_t word) {
    I lane = powers(Lanes{});
    return ((I{} + (int32_t)word) & lane) != 0 ? splat(1.0f) : V{};
}

static inline void put_bits(uint8_t *mask, int64_t at, uint32_t word, int64_t count) {  // into zeroed bytes
    if (W == 16 && count == W && !(at & 7)) {
        uint16_t whole = (uint16_t)word;
        memcpy(mask + (at >> 3), &whole, 2);
        return;
    }
    if (W == 8 && count == W && !(at & 7)) {
        mask[at >> 3] = (uint8_t)word;
        return;
    }
    uint32_t shifted = word << (at & 7);
    int64_t bytes = ((at & 7) + count + 7) >> 3;
    for (int64_t i = 0; i < bytes; i++) mask[(at >> 3) + i] |= (uint8_t)(shifted >> (8 * i));
}
static inline uint32_t get_bits(const uint8_t *mask, int64_t at, int64_t count) {  // `at` is a multiple of W
    if (W == 8 && count == W) return mask[at >> 3];
    uint32_t word = 0;
    memcpy(&word, mask + (at >> 3), (size_t)(((at & 7) + count + 7) >> 3));
    return word >> (at & 7);
}
