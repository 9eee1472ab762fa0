// What an integer product is told, and what every way of computing it shares: pieces, scales, the last step.
//
// The weight is level * scale with level = step * (u + center + half - zero), u a code of up to 8 bits without a
// sign (doubled, or looked up in a table); the input is (q + offset) * scale with q of 8 bits with a sign. The
// sum over a piece, columns that share all scales, of (u + center - zero) q is exact in 32 bits.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>

#include "stored_numbers.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && !defined(RHOC_PLAIN)
#define DOTS 1  // products of bytes are added up by fours
#endif

// f of 0 to N - 1 as constants: arrays that are only indexed so live in registers, whatever a compiler unrolls
#define INLINE __attribute__((always_inline))
#define SEPARATE __attribute__((noinline))
template <class F, int... I> static inline INLINE void each_of(F &&f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F> static inline INLINE void each(F &&f) { each_of(f, std::make_integer_sequence<int, N>{}); }

struct Product {
    int64_t rows, columns, row_bytes;                 // of the weight
    int64_t share_rows, share_columns, scale_columns; // of it that share a scale; scales in a row
    int64_t zero_bytes;                               // of a row of packed zero points; 0: they are all one row
    int64_t input_columns, input_scales;              // of the input that share a scale; scales in a row
    int64_t piece;                                    // columns, a multiple of four
    int64_t stride;                                   // from one row of the input's codes to the next
    int32_t bits, doubled, looked_up, stored, zero_bits, center, grouped, bfloat;  // stored: Kind of scales
    float unit, half;
    uint8_t table[64];
    float bytes[256];  // what stored scales stand for
    int32_t wide;      // codes of the input have 16 bits
};

struct Weight {
    const uint8_t *codes;
    const void *scale;
    const uint8_t *zero;     // null: none
    const float *factor;     // of all scales; null: 1
    const float *row_sums;   // of what codes stand for; null where inputs have no offset
};

struct Input {
    const int8_t *codes;
    const float *scales;     // [rows, input_scales]
    const float *offsets;    // of rows; null: none
    const int32_t *sums;     // of codes, see `Cut`
    const float *lanes;      // scales as sums are laid out in lanes, of grouped inputs
    int64_t rows;
};

struct Output {
    void *to;
    const float *bias;  // or null
};

constexpr int64_t LANE = 4, STEP = 64, TILE_COLUMNS = 4096, LONGEST = 16384, FETCHED = 8192, MOST_ROWS = 32;
constexpr int FEW_ROWS = 4;  // of input that are multiplied at once

static constexpr int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum Way { PLAIN, WHOLE, LANES, TILED };

// How columns are cut. Sums of an input row are one for each piece, or, in LANES, 16 for each block of columns:
// what the lanes of an accumulator have to begin with.
struct Cut {
    Way way;
    int64_t piece, pieces, block, blocks, sums;

    Cut(const Product &p, int64_t rows) {
        bool one = p.piece >= p.columns;
#ifdef DOTS
        int64_t few = one ? MOST_ROWS : FEW_ROWS;  // above, turning tiles was measured as faster
        way = rows > few ? TILED : one && p.columns <= 2 * LONGEST ? WHOLE : LANES;
        bool even = one || p.piece % STEP == 0 || STEP % p.piece == 0;
        if (way == LANES && (!even || p.half != 0 || (p.zero_bits && p.grouped))) way = TILED;
#else
        way = PLAIN;
        (void)rows;
#endif
        int64_t most = way == TILED ? TILE_COLUMNS : way == WHOLE ? 2 * LONGEST : LONGEST;
        piece = p.piece <= most || way == WHOLE ? p.piece : one ? most : std::gcd(p.piece, most);
        pieces = over(p.columns, piece);
        block = piece % STEP ? STEP : piece, blocks = over(p.columns, block);
        sums = way == LANES ? 16 * blocks : pieces;
    }
};

class Scales {  // of the pieces of a row of the weight; and what is added to its codes
    const Product &p;
    const Weight &w;
    const Cut &cut;
    std::unique_ptr<float[]> room;
    std::unique_ptr<int32_t[]> others;
    int64_t found = -1;
    float unit;

  public:
    float *scale;
    int32_t *center;

    Scales(const Product &p, const Weight &w, const Cut &cut)
        : p(p), w(w), cut(cut), room(new float[cut.pieces + p.scale_columns]), others(new int32_t[cut.pieces]),
          unit(w.factor ? p.unit * *w.factor : p.unit), scale(room.get()), center(others.get()) {
        for (int64_t i = 0; i < cut.pieces; i++) center[i] = p.center;
    }
    void row(int64_t n) {
        int64_t at = n / p.share_rows;
        if (at == found) return;
        found = at;
        const bool same = cut.piece == p.share_columns;  // divisions would take longer than all else
        auto found_at = [&](int64_t piece) { return same ? piece : piece * cut.piece / p.share_columns; };
        float *whole = same ? scale : scale + cut.pieces;
        converted(at * p.scale_columns, p.scale_columns, whole);
        if (!same)
            for (int64_t i = 0; i < cut.pieces; i++) scale[i] = whole[found_at(i)];
        if (w.zero)
            for (int64_t i = 0; i < cut.pieces; i++) center[i] = p.center - zero(at, found_at(i));
    }

    void column(int64_t n, int64_t count, float *out, int32_t *centers) {  // of rows that are one piece
        bool simple = p.share_rows == 1 && !w.zero;
        if (simple) converted(n, count, out);
        for (int64_t i = 0; i < count; i++) {
            if (!simple) row(n + i), out[i] = scale[0];
            centers[i] = center[0];
        }
    }

  private:
    void converted(int64_t first, int64_t count, float *out) const {
        ::converted(p.stored, p.bytes, w.scale, first, count, out);
        for (int64_t i = 0; i < count; i++) out[i] *= unit;
    }
    int32_t zero(int64_t row, int64_t column) const {
        int64_t place = p.zero_bytes ? column : row * p.scale_columns + column;
        return code_at(w.zero + row * p.zero_bytes, place * p.zero_bits, p.zero_bits);
    }
};

// The outputs of row m of the input from n: sums over columns, times the input's scale where it is one of rows
template <class T>
static void finish_as(const Product &p, const Weight &w, const Input &x, const Output &out, int64_t m, int64_t n,
                      const float *sums, int64_t count) {
    T *to = (T *)out.to + m * p.rows + n;
    const float scale = p.grouped ? 1.0f : x.scales[m * p.input_scales];
    const float offset = x.offsets ? x.offsets[m] : 0.0f;
    for (int64_t i = 0; i < count; i++) {
        float value = sums[i];
        if (x.offsets) value += offset * w.row_sums[n + i];
        value *= scale;
        if (out.bias) value += out.bias[n + i];
        put(to + i, value);
    }
}
static inline void finish(const Product &p, const Weight &w, const Input &x, const Output &out, int64_t m, int64_t n,
                          const float *sums, int64_t count) {
    if (p.bfloat) finish_as<Bfloat>(p, w, x, out, m, n, sums, count);
    else finish_as<float>(p, w, x, out, m, n, sums, count);
}
