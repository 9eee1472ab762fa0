// What the libraries of codebooks, trellises and sparse weights have in common: products and whole rows of a
// matrix from decoders that are built alike, of a plan and its fields.

#pragma once

#include "decode_scales.h"
#include "strip.h"

#if PAIRS && WIDE
constexpr bool PAIRED = true;  // inputs of bfloat16 are multiplied as they are, and not as float32
#else
constexpr bool PAIRED = false;
#endif

constexpr int32_t HAS = PAIRED ? 1 : EIGHTS ? 2 : 0;  // as streamed.py names it

static inline int64_t padded(int64_t count) { return (count + CHUNK - 1) / CHUNK * CHUNK; }

// Fetch what is needed after `count` bytes, some tiles later: pieces of rows are too short for the processor to
// see where they lead.
static inline void soon(const void *bytes, int64_t count) {
    const uint8_t *from = (const uint8_t *)bytes + 16384;
    for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// float32 to the numbers that are multiplied
static inline void narrowed(const float *from, int64_t count, float *out) { memcpy(out, from, (size_t)count * 4); }
static inline void narrowed(const float *from, int64_t count, Bfloat *out) {  // multiples of CHUNK
#if PAIRS
    for (int64_t i = 0; i < count; i += 2 * W) {
        __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + W), _mm512_loadu_ps(from + i));
        _mm512_storeu_si512(out + i, (__m512i)pair);
    }
#else
    for (int64_t i = 0; i < count; i += W) store(out + i, load(from + i));
#endif
}

// Results `first` to `last` of a job, with Decoder<Number>
template <template <class> class Decoder, class Plan>
static void streamed(const Plan &plan, const void *const *fields, const Job &job, bool pairs, int64_t first,
                     int64_t last) {
#if PAIRS && WIDE
    if (pairs) {
        Decoder<Bfloat> decoder(plan, fields);
        return strip<Pairs>(job, decoder, first, last);
    }
#endif
    Decoder<float> decoder(plan, fields);
    strip<Real>(job, decoder, first, last);
}

// Rows `first` to `last` of the matrix, each number rounded once. `scaled`: decoders leave factors to the end.
template <template <class> class Decoder, class Plan>
static void whole_rows(const Plan &plan, const void *const *fields, void *out, bool bfloat, int64_t first,
                       int64_t last) {
    int64_t size = padded(plan.columns);
    std::unique_ptr<Bfloat[]> rounded(new Bfloat[size + CHUNK]);
    if (bfloat && PAIRED) {
        Decoder<Bfloat> decoder(plan, fields);
        bool inside = size == plan.columns;
        for (int64_t n = first; n < last && !decoder.scaled(); n++) {
            Bfloat *row = (Bfloat *)out + n * plan.columns;
            // no decoder writes past what it is asked for by more than CHUNK, but the last row has nothing behind it
            Bfloat *to = inside && n + 1 < last ? row : rounded.get();
            decoder.fill(n, 0, size, to);
            if (to != row) memcpy(row, to, (size_t)plan.columns * 2);
        }
        if (!decoder.scaled()) return;
    }
    Decoder<float> decoder(plan, fields);
    std::unique_ptr<float[]> row(new float[size + CHUNK]);
    for (int64_t n = first; n < last; n++) {
        decoder.fill(n, 0, size, row.get());
        V factor = splat(decoder.factor(n));
        for (int64_t k = 0; k < size; k += W) store(row.get() + k, load(row.get() + k) * factor);
        if (bfloat) {
            narrowed(row.get(), size, rounded.get());
            memcpy((Bfloat *)out + n * plan.columns, rounded.get(), (size_t)plan.columns * 2);
        } else {
            memcpy((float *)out + n * plan.columns, row.get(), (size_t)plan.columns * 4);
        }
    }
}

// The functions of a library. `special` may compute a product in a way of its own, and then returns true.
#define RHOC_EXPORTS(Plan, Decoder, special)                                                                       \
    extern "C" {                                                                                                   \
    int64_t rhoc_plan_bytes() { return sizeof(Plan); }                                                             \
    int32_t rhoc_has() { return HAS; }                                                                             \
    void rhoc_linear(const Plan *plan, const void *const *fields, const void *x, int64_t rows, int64_t stride,     \
                     int32_t pairs, const void *bias, void *out, int32_t bfloat, int64_t first, int64_t last) {    \
        Job job{x, bias, out, rows, plan->columns, stride, plan->rows, bfloat};                                    \
        if (special(*plan, fields, job, pairs, first, last)) return;                                               \
        streamed<Decoder>(*plan, fields, job, pairs, first, last);                                                 \
    }                                                                                                              \
    void rhoc_rows(const Plan *plan, const void *const *fields, void *out, int32_t bfloat, int64_t first,          \
                   int64_t last) {                                                                                 \
        whole_rows<Decoder>(*plan, fields, out, bfloat, first, last);                                              \
    }                                                                                                              \
    }
