// Products of quantised inputs with quantised weights, as integers: y = (q + offset) s W^T + bias.
//
// `Product` and the pointers are laid out by int8_layout.py. Rows of the weight are independent, so threads may
// take any of them.

#include "int8_decode.h"
#include "int8_plain.h"
#include "int8_product.h"
#include "int8_rows.h"
#include "int8_tiles.h"

#ifdef DOTS

template <int D> static void whole_rows(const Product &p, const Weight &w, const Input &x, const Output &out,
                                        const Cut &cut, int64_t first, int64_t last) {
    if (x.rows <= 2) return WholeRows<D, D == RAW ? 1 : 2, true>(p, w, x, out, cut).run(first, last);
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

extern "C" {

int64_t rhoc_int8_product_bytes(void) { return sizeof(Product); }

// How many sums a row of the input has.
int64_t rhoc_int8_sums_of(const Product *p, int64_t rows) { return Cut(*p, rows).sums; }

// Sums of codes; and, of grouped inputs in lanes, their scales in the same places.
void rhoc_int8_sums(const Product *p, const int8_t *codes, const float *scales, int32_t *sums, float *lanes,
                    int64_t zeros, int64_t rows) {
    const Cut cut(*p, rows);
    for (int64_t m = 0; m < rows; m++) {
        const int8_t *q = codes + m * p->stride;
        int32_t *out = sums + m * cut.sums;
        if (cut.way != LANES) {
            for (int64_t i = 0; i < cut.pieces; i++) {
                int64_t at = i * cut.piece, end = std::min(at + cut.piece, p->columns);
                int32_t sum = 0;
                for (; at < end; at++) sum += q[at];
                out[i] = sum;
            }
            continue;
        }
        memset(out, 0, 4 * (size_t)cut.sums);
        for (int64_t at = 0; at < p->columns; at += LANE) {
            int64_t place = 16 * (at / cut.block) + at % STEP / LANE;
            int32_t sum = q[at] + q[at + 1] + q[at + 2] + q[at + 3];
            out[place] += zeros ? sum : sum * p->center;
        }
        for (int64_t i = 0; p->grouped && i < cut.sums; i++) {
            int64_t at = std::min(i / 16 * cut.block + i % 16 * LANE, p->columns - 1);
            lanes[m * cut.sums + i] = scales[m * p->input_scales + at / p->input_columns];
        }
    }
}

// Outputs from `first` to `last`, for all rows of the input.
void rhoc_int8_linear(const Product *p, const uint8_t *codes, const void *scale, const uint8_t *zero,
                      const float *factor, const float *row_sums, const int8_t *input, const float *scales,
                      const float *offsets, const int32_t *sums, const float *lanes, int64_t rows, void *to,
                      const float *bias, int64_t first, int64_t last) {
    const Weight w = {codes, scale, zero, factor, row_sums};
    const Input x = {input, scales, offsets, sums, lanes, rows};
    const Output out = {to, bias};
    const Cut cut(*p, rows);
#ifdef DOTS
    if (p->looked_up) return product<TABLE>(*p, w, x, out, cut, first, last);
    if (p->bits < 8) return product<PACKED>(*p, w, x, out, cut, first, last);
    return product<RAW>(*p, w, x, out, cut, first, last);
#else
    plain_rows(*p, w, x, out, cut, first, last);
#endif
}

}
