// Products of quantised inputs with quantised weights, as integers: y = (q + offset) s W^T + bias.
//
// `Product` and the pointers are laid out by int8_layout.py. Rows of the weight are independent, so threads may
// take any of them. It is compiled for one way of DECODING at a time, RAW, PACKED or TABLE, when it is needed.

#include "int8_blocks.h"
#include "int8_decode.h"
#include "int8_plain.h"
#include "int8_product.h"
#include "int8_rows.h"
#include "int8_tiles.h"
#include "int8_words_rows.h"

#ifdef DOTS

template <int D> static void whole_rows(const Product &p, const Weight &w, const Input &x, const Output &out,
                                        const Cut &cut, int64_t first, int64_t last) {
    if (x.rows <= FEW_ROWS) return WholeRows<D, D == RAW ? 1 : 2, true>(p, w, x, out, cut).run(first, last);
    if constexpr (D == RAW)
        if (x.rows <= BLOCK_ROWS) return Blocks(p, w, x, out, cut).run(first, last);
    WholeRows<D, D == RAW ? 6 : 4, false>(p, w, x, out, cut).run(first, last);
}

template <int D> static void rows_in_pieces(const Product &p, const Weight &w, const Input &x, const Output &out,
                                            const Cut &cut, int64_t first, int64_t last) {
    if (w.zero) return RowsInPieces<D, true, false>(p, w, x, out, cut).run(first, last);
    if (p.grouped) return RowsInPieces<D, false, true>(p, w, x, out, cut).run(first, last);
    RowsInPieces<D, false, false>(p, w, x, out, cut).run(first, last);
}

template <int D> static void product(const Product &p, const Weight &w, const Input &x, const Output &out,
                                     const Cut &cut, int64_t first, int64_t last) {
    if (cut.way == WHOLE) return whole_rows<D>(p, w, x, out, cut, first, last);
    if (cut.way == LANES) return rows_in_pieces<D>(p, w, x, out, cut, first, last);
    const bool centers = w.zero || p.half != 0;
    if (centers && p.grouped) return Tiles<D, true, true>(p, w, x, out, cut).run(first, last);
    if (centers) return Tiles<D, true, false>(p, w, x, out, cut).run(first, last);
    if (p.grouped) return Tiles<D, false, true>(p, w, x, out, cut).run(first, last);
    Tiles<D, false, false>(p, w, x, out, cut).run(first, last);
}

#endif

// Sums of codes of the input; and, where it is grouped and summed in lanes, its scales in the same places. Every
// thread makes its own, which is little beside the product.
class InputSums {
    std::unique_ptr<int32_t[]> sums;
    std::unique_ptr<float[]> lanes;

  public:
    InputSums(const Product &p, const Cut &cut, bool zeros, Input &x) : sums(new int32_t[x.rows * cut.sums]()) {
        for (int64_t m = 0; m < x.rows; m++) {
            if (cut.way == LANES) of_lanes(p, cut, zeros, x.codes + m * p.stride, sums.get() + m * cut.sums);
            else of_pieces(p, cut, x.codes + m * p.stride, sums.get() + m * cut.sums);
        }
        x.sums = sums.get();
        if (!p.grouped || cut.way != LANES) return;
        lanes.reset(new float[x.rows * cut.sums]);
        for (int64_t m = 0; m < x.rows; m++)
            for (int64_t i = 0; i < cut.sums; i++) {
                int64_t at = std::min(i / 16 * cut.block + i % 16 * LANE, p.columns - 1);
                lanes[m * cut.sums + i] = x.scales[m * p.input_scales + at / p.input_columns];
            }
        x.lanes = lanes.get();
    }

  private:
    static void of_pieces(const Product &p, const Cut &cut, const int8_t *q, int32_t *out) {
        for (int64_t i = 0; i < cut.pieces; i++) {
            int64_t at = i * cut.piece, end = std::min(at + cut.piece, p.columns);
            int32_t sum = 0;
            for (; at < end; at++) sum += q[at];
            out[i] = sum;
        }
    }
    static void of_lanes(const Product &p, const Cut &cut, bool zeros, const int8_t *q, int32_t *out) {
        for (int64_t at = 0; at < p.columns; at += LANE) {
            int64_t place = 16 * (at / cut.block) + at % STEP / LANE;
            int32_t sum = q[at] + q[at + 1] + q[at + 2] + q[at + 3];
            out[place] += zeros ? sum : sum * p.center;
        }
    }
};

extern "C" {

int64_t rhoc_int8_product_bytes(void) { return sizeof(Product); }

// Whether inputs of 16 bits are taken, which nothing else than words are multiplied with.
int32_t rhoc_int8_is_wide(const Product *p) {
#ifdef WORDS
    return fit_words(*p);
#else
    (void)p;
    return 0;
#endif
}

// Outputs from `first` to `last`, for all rows of the input.
void rhoc_int8_linear(const Product *p, const uint8_t *codes, const void *scale, const uint8_t *zero,
                      const float *factor, const float *row_sums, const int8_t *input, const float *scales,
                      const float *offsets, int64_t rows, void *to, const float *bias, int64_t first, int64_t last) {
    const Weight w = {codes, scale, zero, factor, row_sums};
    const Output out = {to, bias};
    const Cut cut(*p, rows);
    Input x = {input, scales, offsets, nullptr, nullptr, rows};
#ifdef WORDS
    if (p->wide) return wide_product<DECODING>(*p, w, x, out, first, last);
    if (fit_words(*p)) return word_product<DECODING>(*p, w, x, out, first, last);
#endif
    const InputSums sums(*p, cut, zero, x);
#ifdef DOTS
    product<DECODING>(*p, w, x, out, cut, first, last);
#else
    plain_rows(*p, w, x, out, cut, first, last);
#endif
}

}
