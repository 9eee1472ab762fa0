// Vectors of as many numbers as the processor has lanes, and bfloat16.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
constexpr int W = 16;  // numbers in a vector
#if defined(__AVX512VBMI__)
#define WIDE 1  // bytes are moved and looked up across a vector
#endif
#if defined(__AVX512BF16__)
#define PAIRS 1  // products of bfloat16 are added up in pairs
#endif
#elif defined(__AVX2__)
constexpr int W = 8;
#if defined(__FMA__) && defined(__F16C__)
#define EIGHTS 1  // as all processors with AVX2 have
#endif
#else
constexpr int W = 4;
#endif
#ifndef WIDE
#define WIDE 0
#endif
#ifndef PAIRS
#define PAIRS 0
#endif
#ifndef EIGHTS
#define EIGHTS 0
#endif

#define ALWAYS inline __attribute__((always_inline))

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t Short __attribute__((vector_size(2 * W)));
typedef uint16_t Bfloat;

static inline V splat(float value) { return value - V{}; }
static inline I bits(V v) { I i; memcpy(&i, &v, sizeof v); return i; }
static inline V floats(I i) { V v; memcpy(&v, &i, sizeof v); return v; }
static inline float as_float(uint32_t i) { float f; memcpy(&f, &i, 4); return f; }
static inline uint32_t as_int(float f) { uint32_t i; memcpy(&i, &f, 4); return i; }

static inline V load(const float *p) { V v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, V v) { memcpy(p, &v, sizeof v); }
static inline V load(const Bfloat *p) {
    Short half;
    memcpy(&half, p, sizeof half);
    return floats((I)(__builtin_convertvector(half, U) << 16));
}
static inline void store(Bfloat *p, V v) {  // to nearest even
    U u = (U)bits(v);
    U even = u + 0x7fff + ((u >> 16) & 1);
    U whole = v != v ? U{} + 0x7fc00000u : even;
    Short half = __builtin_convertvector(whole >> 16, Short);
    memcpy(p, &half, sizeof half);
}

static inline float number(float value) { return value; }
static inline float number(Bfloat value) { return as_float((uint32_t)value << 16); }
static inline void put(float *p, float value) { *p = value; }
static inline void put(Bfloat *p, float value) {
    uint32_t u = as_int(value);
    *p = value != value ? 0x7fc0 : (Bfloat)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline V fused(V a, V b, V c) {  // a * b + c, rounded once where the processor does that
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline float sum(V v) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float part[W];
    store(part, v);
#pragma GCC unroll 4
    for (int width = W / 2; width; width /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
#endif
}

// The sums of four vectors
static inline void sums(const V *v, float *out) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
    __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
    __m256 ab = _mm256_hadd_ps((__m256)v[0], (__m256)v[1]), cd = _mm256_hadd_ps((__m256)v[2], (__m256)v[3]);
    __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    for (int i = 0; i < 4; i++) out[i] = sum(v[i]);
#endif
}
