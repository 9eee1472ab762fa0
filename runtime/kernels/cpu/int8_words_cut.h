// How columns are cut where words or bytes are multiplied; and what the input is then.

#pragma once

#include "int8_words.h"

#ifdef WORDS

constexpr int64_t UNPACKED = 1024;  // bytes of a row of the weight that are unpacked together
constexpr int64_t TEAM = 4;         // rows of the input, of which those beyond the last are zero

// Blocks of a piece that are added up before their scale, in steps of some columns; where a piece is the whole row,
// its sums stay exact integers.
struct BlockCut {
    bool exact;
    int64_t width, block, blocks;  // steps of a block, columns, and how many there are
    int64_t together;              // blocks that are unpacked together, whole vectors
    Cut pieces;                    // of scales

    BlockCut(const Product &p, int64_t step, int64_t bytes, int64_t most) : pieces(p, 0) {  // of and in a step
        const bool one = p.piece >= p.columns && !p.wide;
        most = std::min(most, UNPACKED / bytes);
        exact = one;
        width = one ? most : std::min(p.piece / step, most);
        while (!one && p.piece / step % width) width--;
        block = width * step, blocks = over(p.columns, block);
        const int64_t whole = width % 8 ? 8 : 1;
        together = std::max((int64_t)1, UNPACKED / bytes / (width * whole)) * whole;
        pieces.piece = p.piece, pieces.pieces = over(p.columns, p.piece);
    }
};

template <class N> struct BlockInput {
    typedef typename N::Number Number;
    const int64_t stride;
    std::unique_ptr<Number[]> numbers;
    std::unique_ptr<int32_t[]> all, sums;  // of rows, and of their blocks, in `lanes`
    std::unique_ptr<float[]> scale;        // [rows, blocks], of grouped inputs

    BlockInput(const Product &p, const Input &x, const BlockCut &cut, int64_t lanes)
        : stride(p.stride), numbers(new Number[over(x.rows, TEAM) * TEAM * stride]()), all(new int32_t[x.rows]()),
          sums(new int32_t[over(x.rows, TEAM) * TEAM * cut.blocks * lanes]()) {
        for (int64_t m = 0; m < x.rows; m++) {
            Number *row = numbers.get() + m * stride;
            const int16_t *wide = (const int16_t *)x.codes + m * stride;
            for (int64_t i = 0; i < stride; i++) row[i] = p.wide ? (Number)wide[i] : x.codes[m * stride + i];
            for (int64_t i = 0; i < p.columns; i++) all[m] += row[i];
            int32_t *to = sums.get() + m * cut.blocks * lanes;
            for (int64_t at = 0, lane = 0, end = cut.block; !cut.exact && at < p.columns; at += N::LANE) {
                if (at == end) to += lanes, end += cut.block;
                for (int i = 0; i < N::LANE; i++) to[lane] += row[at + i];
                lane = (lane + 1) % lanes;
            }
        }
        if (!p.grouped) return;
        scale.reset(new float[over(x.rows, TEAM) * TEAM * cut.blocks]());
        for (int64_t i = 0; i < cut.blocks; i++) {
            const int64_t from = i * cut.block / p.input_columns;
            for (int64_t m = 0; m < x.rows; m++) scale[m * cut.blocks + i] = x.scales[m * p.input_scales + from];
        }
    }
};

#endif
