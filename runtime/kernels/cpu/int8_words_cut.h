// How columns are cut where words or bytes are multiplied; and what the input is then.

#pragma once

#include "int8_words.h"

#ifdef WORDS

constexpr int64_t UNPACKED = 1024;  // bytes of integers of a row of the weight that are turned together
constexpr int64_t TEAM = 4;         // rows of the input, of which those beyond the last are zero

// Blocks of columns, in units of some, that are added up before they are scaled: of a piece, or of all pieces of a
// unit. Where a piece is the whole row, its sums stay exact integers.
struct BlockCut {
    bool exact;
    int64_t width, block, blocks;  // units of a block, columns, and how many there are
    int64_t together;              // blocks that are turned together, whole vectors
    int64_t of_block, of_piece;    // pieces; blocks
    int64_t scales;                // of a row
    Cut pieces;

    BlockCut(const Product &p, int64_t unit, int64_t bytes, int64_t most) : pieces(p, 0) {  // of and in a unit
        const bool one = p.piece >= p.columns;
        const int64_t piece = one ? over(p.columns, unit) * unit : p.piece;
        const int64_t units = std::max(piece / unit, (int64_t)1);
        most = std::min(most, UNPACKED / bytes);
        exact = one && !p.wide;
        width = exact ? most : std::min(units, most);
        while (!exact && units % width) width--;
        block = width * unit, blocks = over(p.columns, block);
        of_block = exact ? 1 : std::max(block / piece, (int64_t)1);
        of_piece = exact ? 1 : std::max(piece / block, (int64_t)1);
        const int64_t whole = width % 8 ? 8 : 1;
        together = std::max((int64_t)1, UNPACKED / bytes / (width * whole)) * whole;
        pieces.piece = p.piece, pieces.pieces = over(p.columns, p.piece);
        scales = std::max(pieces.pieces * of_piece, blocks * of_block);
    }
};

template <class N> struct BlockInput {
    typedef typename N::Number Number;
    typedef typename N::Sum Sum;
    const int64_t stride, next_scale;
    std::unique_ptr<Number[]> numbers;
    std::unique_ptr<int32_t[]> all;  // sums of rows
    std::unique_ptr<Sum[]> sums;     // of their blocks, in `lanes`
    std::unique_ptr<float[]> scale;  // [rows, next_scale], of grouped inputs

    // In the order in which `decode` gives columns
    template <class U>
    BlockInput(const Product &p, const Input &x, const BlockCut &cut, const U &decode, int64_t lanes)
        : stride(decode.units * decode.unit + 64), next_scale(cut.scales + 8),
          numbers(new Number[over(x.rows, TEAM) * TEAM * stride]()), all(new int32_t[x.rows]()),
          sums(new Sum[over(x.rows, TEAM) * TEAM * cut.blocks * lanes]()) {
        for (int64_t m = 0; m < x.rows; m++) {
            Number *row = numbers.get() + m * stride;
            auto entered = [&](auto *codes) {
                const int64_t parts = decode.parts, size = decode.unit / parts;
                for (int64_t i = 0; i < decode.units * parts; i++) {
                    const int64_t first = i / parts * decode.unit + i % parts;  // a column
                    const int64_t count = std::min(size, over(p.columns - first, parts));
                    for (int64_t j = 0; j < count; j++) row[i * size + j] = (Number)codes[first + j * parts];
                }
            };
            if (p.wide) entered((const int16_t *)x.codes + m * p.stride);
            else entered(x.codes + m * p.stride);
            for (int64_t i = 0; i < stride; i++) all[m] += row[i];
            for (int64_t i = 0; !cut.exact && i < cut.blocks; i++) {
                Sum *to = sums.get() + (m * cut.blocks + i) * lanes;
                for (int64_t at = i * cut.block; at < std::min((i + 1) * cut.block, stride); at += 2 * lanes)
                    for (int64_t j = 0; j < lanes; j++) to[j] += row[at + 2 * j] + row[at + 2 * j + 1];
            }
        }
        if (!p.grouped) return;
        scale.reset(new float[over(x.rows, TEAM) * TEAM * next_scale]());
        const int64_t columns = cut.block / cut.of_block;
        for (int64_t i = 0; i < over(p.columns, columns); i++) {
            const int64_t from = i * columns / p.input_columns;
            for (int64_t m = 0; m < x.rows; m++) scale[m * next_scale + i] = x.scales[m * p.input_scales + from];
        }
    }
};

#endif
