// Integer products in plain C++, row by row of the weight; what compilers make of it is up to them.

#pragma once

#include "int8_decode.h"

static inline int32_t dot_of(const uint8_t *u, const int8_t *q, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (int32_t)u[i] * q[i];
    return sum;
}

[[maybe_unused]] static void plain_rows(const Product &p, const Weight &w, const Input &x, const Output &out,
                                        const Cut &cut, int64_t first, int64_t last) {
    Scales scales(p, w, cut);
    std::unique_ptr<uint8_t[]> codes(new uint8_t[p.columns]);
    for (int64_t n = first; n < last; n++) {
        scales.row(n);
        unpacked(p, w.codes + n * p.row_bytes, 0, p.columns, codes.get());
        for (int64_t m = 0; m < x.rows; m++) {
            const int8_t *q = x.codes + m * p.stride;
            float sum = 0;
            for (int64_t i = 0; i < cut.pieces; i++) {
                int64_t at = i * cut.piece, all = x.sums[m * cut.sums + i];
                int32_t exact = dot_of(codes.get() + at, q + at, std::min(cut.piece, p.columns - at));
                float part = (float)(exact + scales.center[i] * all) + p.half * (float)all;
                float scale = p.grouped ? x.scales[m * p.input_scales + at / p.input_columns] : 1.0f;
                sum += part * (scales.scale[i] * scale);
            }
            finish(p, w, x, out, m, n, &sum, 1);
        }
    }
}
