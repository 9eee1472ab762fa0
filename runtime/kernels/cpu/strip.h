// y = x W^T + b for a weight that a decoder hands over in pieces of rows, which stay in cache.
//
// A decoder is a class with
//     using Number = Real::Number or Pairs::Number;
//     void fill(int64_t n, int64_t first, int64_t count, Number *out);
//         the numbers `first` to `first + count` of row n, multiples of CHUNK: past the row's end anything finite
//     float factor(int64_t n);
//         what the sums of row n are multiplied by at the end
// One decoder serves one thread, and is asked for rows in ascending order, once for each block of the input.

#pragma once

#include <algorithm>
#include <memory>

#include "vectors.h"

constexpr int64_t CHUNK = 64;  // numbers that decoders make at once; inputs are padded with zeros to these

// Numbers as they are multiplied: float32,
struct Real {
    using Number = float;
    using Vector = V;
    static constexpr int64_t SIZE = W;
    static inline Vector get(const Number *p) { return load(p); }
    static inline V add(V sum, Vector a, Vector b) { return fused(a, b, sum); }
};

// or bfloat16 in pairs of neighbours, whose products are added to one number in float32.
#if PAIRS
struct Pairs {
    using Number = Bfloat;
    using Vector = __m512i;
    static constexpr int64_t SIZE = 2 * W;
    static inline Vector get(const Number *p) { return _mm512_loadu_si512(p); }
    static inline V add(V sum, Vector a, Vector b) {
        return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

// Stored bytes that are needed a while after these, a tile or so ahead: while inputs are multiplied, the
// processor loses track of them, and they come half as fast. To be asked for one by one; many at once stall.
static inline void ahead(const uint8_t *bytes) { __builtin_prefetch(bytes + 8192); }

// What is computed: `rows` inputs of `columns` numbers, with zeros behind them up to `stride`, a multiple of CHUNK,
// where the next one begins.
struct Job {
    const void *x;
    const void *bias;  // of the result's dtype, or null
    void *out;         // [rows, outputs]
    int64_t rows, columns, stride, outputs;
    int32_t bfloat;  // whether the result is bfloat16, and not float32
};

static inline void finish(const Job &job, int64_t m, int64_t n, float value) {
    int64_t at = m * job.outputs + n;
    if (job.bfloat) {
        if (job.bias) value += number(((const Bfloat *)job.bias)[n]);
        put((Bfloat *)job.out + at, value);
    } else {
        ((float *)job.out)[at] = job.bias ? value + ((const float *)job.bias)[n] : value;
    }
}

constexpr int TILE = 4;                   // rows of the weight in a tile
constexpr int DEEP = W == 16 ? 6 : W == 8 ? 3 : 2;  // rows of the input in it: what registers hold
constexpr int64_t PIECE = 4096;           // bytes of a row that are decoded at once: a tile of them stays in cache
constexpr int64_t RESIDENT = 512 * 1024;  // bytes of the input that stay in a cache while the weight passes

// sums[m][n] of M inputs with TILE rows; `apart` numbers lie between rows of the weight
template <class A, int M>
__attribute__((noinline)) static void multiplied(const typename A::Number *x, int64_t stride, const typename A::Number *weight,
                              int64_t apart, int64_t count, float (*out)[TILE]) {
    constexpr int64_t FEW = M == 1 ? 2 : 1;  // chains per sum, to keep the multipliers busy
    V total[FEW][M][TILE] = {};
    for (int64_t k = 0; k < count; k += FEW * A::SIZE)
#pragma GCC unroll 8
        for (int64_t f = 0; f < FEW; f++) {
            if constexpr (W == 8) {  // of 16 registers sums take 12: one row of the weight after the other
                typename A::Vector row[M];
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    row[m] = A::get(x + m * stride + k + f * A::SIZE);
                    asm("" : "+x"(row[m]));  // or it would be read for each row of the weight
                }
#pragma GCC unroll 8
                for (int n = 0; n < TILE; n++) {
                    typename A::Vector w = A::get(weight + n * apart + k + f * A::SIZE);
                    asm("" : "+x"(w));
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++) total[f][m][n] = A::add(total[f][m][n], w, row[m]);
                }
                continue;
            }
            typename A::Vector w[TILE];
#pragma GCC unroll 8
            for (int n = 0; n < TILE; n++) w[n] = A::get(weight + n * apart + k + f * A::SIZE);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                typename A::Vector row = A::get(x + m * stride + k + f * A::SIZE);
#pragma GCC unroll 8
                for (int n = 0; n < TILE; n++) total[f][m][n] = A::add(total[f][m][n], w[n], row);
            }
        }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        if (FEW == 2)
#pragma GCC unroll 8
            for (int n = 0; n < TILE; n++) total[0][m][n] += total[FEW - 1][m][n];
        for (int n = 0; n < TILE; n += 4) sums(total[0][m] + n, out[m] + n);
    }
}

template <class A, int M = DEEP>
static void multiplied_some(int64_t rows, const typename A::Number *x, int64_t stride,
                                   const typename A::Number *weight, int64_t apart, int64_t count,
                                   float (*out)[TILE]) {
    if constexpr (M > 1)
        if (rows < M) return multiplied_some<A, M - 1>(rows, x, stride, weight, apart, count, out);
    multiplied<A, M>(x, stride, weight, apart, count, out);
}

// What becomes of sums: times factors, plus bias, as the result's dtype
template <class T> class Results {
    const Job &job;
    float factor[TILE] = {}, bias[TILE] = {};
    int64_t n = 0;
    int high = 0;

  public:
    explicit Results(const Job &job) : job(job) {}
    template <class D> void rows(D &decoder, int64_t first, int count) {
        n = first, high = count;
        for (int i = 0; i < count; i++) {
            factor[i] = decoder.factor(n + i);
            if (job.bias) bias[i] = number(((const T *)job.bias)[n + i]);
        }
    }
    inline void keep(int64_t m, const float *sums) const {
        T done[TILE];
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++) put(done + i, sums[i] * factor[i] + bias[i]);
        T *out = (T *)job.out + m * job.outputs + n;
        if (high == TILE)
            memcpy(out, done, sizeof done);
        else
            memcpy(out, done, (size_t)high * sizeof(T));
    }
};

// Results `first` to `last` of every input, computed and stored as T.
template <class A, class T, class D> static void strip_as(const Job &job, D &decoder, int64_t first, int64_t last) {
    using Number = typename A::Number;
    const Number *x = (const Number *)job.x;
    // AVX2: rows of the input may lie further apart, where they would fall on the same places of a cache.
#if EIGHTS
    const int64_t width = (job.columns + CHUNK - 1) / CHUNK * CHUNK;
#else
    const int64_t &width = job.stride;
#endif
    int64_t piece = std::min<int64_t>(PIECE / sizeof(Number), width);
    int64_t block = std::max<int64_t>(4 * DEEP, RESIDENT / (job.stride * sizeof(Number)) / DEEP * DEEP);
    std::unique_ptr<Number[]> room(new Number[TILE * piece + 64]);
    std::unique_ptr<float[][TILE]> partial(new float[block][TILE]);
    Number *weight = (Number *)(((uintptr_t)room.get() + 63) & ~(uintptr_t)63);
    Results<T> results(job);
    for (int64_t top = 0; top < job.rows; top += block) {
        int64_t rows = std::min(block, job.rows - top);
        for (int64_t n = first; n < last; n += TILE) {
            int high = (int)std::min<int64_t>(TILE, last - n);
            results.rows(decoder, n, high);
            for (int64_t k = 0; k < width; k += piece) {
                int64_t count = std::min(piece, width - k);
                for (int i = 0; i < TILE; i++)  // rows that there are not repeat the last
                    decoder.fill(std::min(n + i, last - 1), k, count, weight + i * piece);
                for (int64_t m = 0; m < rows; m += DEEP) {
                    float out[DEEP][TILE];
                    int64_t deep = std::min<int64_t>(DEEP, rows - m);
                    multiplied_some<A>(deep, x + (top + m) * job.stride + k, job.stride, weight, piece, count, out);
                    for (int64_t j = 0; j < deep; j++) {
                        float *so_far = partial[m + j];
#pragma GCC unroll 4
                        for (int i = 0; i < TILE; i++) out[j][i] += k ? so_far[i] : 0;
                        if (k + count == width)
                            results.keep(top + m + j, out[j]);
                        else
                            memcpy(so_far, out[j], sizeof out[j]);
                    }
                }
            }
        }
    }
}

template <class A, class D> static void strip(const Job &job, D &decoder, int64_t first, int64_t last) {
    if (job.bfloat) return strip_as<A, Bfloat>(job, decoder, first, last);
    strip_as<A, float>(job, decoder, first, last);
}
