// Inputs as fixed-point numbers: 16 bits, and a scale for each block of columns.
//
// What is rounded away is at most half of 1/32767 of a block's largest number. Rows in which that would tell are
// left out: those where a block has a number far above its others, or anything that is no number.

#include "vectors.h"

constexpr float LARGEST = 32767;
// A row's error, sqrt(sum over blocks of columns * largest^2 / 12) / 32767, is at most a quarter of what rounding a
// result to bfloat16 is, 2^-9 / sqrt(12) times the root of the sum of squares, if this bounds their ratio. The
// largest of each block is not counted among the squares: a weight may have nothing in its column.
constexpr float SPREAD = 16;
constexpr float SMALLEST = 1e-30f;  // whose reciprocals are numbers

struct Block {
    float largest;
    float others;  // sum of the squares of all but the largest
};
template <class T> static Block measured(const T *x, int64_t count) {
    V most{}, squares{};
    auto one = [&](V v) {
        V size = floats(bits(v) & 0x7fffffff);
        most = size > most ? size : most, squares += v * v;
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) one(load(x + i));
    if (i < count) {
        T some[W] = {};
        memcpy(some, x + i, (size_t)(count - i) * sizeof(T));
        one(load(some));
    }
    float lanes[W], largest = 0;
    store(lanes, most);
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    return {largest, sum(squares) - largest * largest};
}

template <class T> static void coded(const T *x, int64_t count, float by, int16_t *out) {
    const V near = splat(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    for (int64_t i = 0; i < count; i += W) {
        T some[W] = {};
        const bool whole = i + W <= count;
        if (!whole) memcpy(some, x + i, (size_t)(count - i) * sizeof(T));
        I number = __builtin_convertvector((load(whole ? x + i : some) * by + near) - near, I);
        Short code = __builtin_convertvector(number, Short);
        memcpy(out + i, &code, whole ? sizeof code : (size_t)(count - i) * sizeof *out);
    }
}

// Whether a row [columns] is well represented by codes [stride] and scales [blocks]
template <class T>
static bool entered(const T *x, int64_t columns, int64_t block, int64_t stride, int16_t *codes, float *scales) {
    float error = 0, squares = 0;
    bool numbers = true;
    for (int64_t at = 0; at < columns; at += block) {
        const int64_t count = at + block < columns ? block : columns - at;
        const Block found = measured(x + at, count);
        numbers &= found.largest == 0 || found.largest > SMALLEST;
        error += (float)count * found.largest * found.largest, squares += found.others;
        *scales++ = found.largest / LARGEST;
        coded(x + at, count, found.largest > SMALLEST ? LARGEST / found.largest : 0, codes + at);
    }
    memset(codes + columns, 0, (size_t)(stride - columns) * sizeof *codes);
    return numbers && error <= SPREAD * SPREAD * squares;
}

template <class T>
static void enter_rows(const T *x, int64_t columns, int64_t block, int64_t stride, int16_t *codes, float *scales,
                       uint8_t *good, int64_t first, int64_t last) {
    const int64_t blocks = (columns + block - 1) / block;
    for (int64_t i = first; i < last; i++)
        good[i] = entered(x + i * columns, columns, block, stride, codes + i * stride, scales + i * blocks);
}

extern "C" {

// Rows `first` to `last` of x [rows, columns], float32 or bfloat16: codes, scales, and whether they are good for it
void rhoc_fixed_enter(const void *x, int32_t bfloat, int64_t columns, int64_t block, int64_t stride, int16_t *codes,
                      float *scales, uint8_t *good, int64_t first, int64_t last) {
    if (bfloat) enter_rows((const Bfloat *)x, columns, block, stride, codes, scales, good, first, last);
    else enter_rows((const float *)x, columns, block, stride, codes, scales, good, first, last);
}

}
