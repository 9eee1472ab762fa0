// Products some rows of the weight after another. For a few rows of input the weight is unpacked in registers; for
// more, some columns of it are unpacked and turned into what stays in the nearest cache, and read by all.

#pragma once

#include "int8_words_decode.h"
#include "int8_words_dots.h"
#include "int8_words_halves.h"
#include "int8_wide_few.h"

#ifdef WORDS

template <class N, int D, bool EXACT, bool ACROSS> class BlockRows {
    typedef typename N::Number Number;
    static constexpr int TOGETHER = 16;   // rows of the weight
    static constexpr int NR = 2, MR = 4;  // rows, or vectors of rows, of the weight; rows of the input
    static constexpr int64_t NEXT_BLOCK = ACROSS ? TOGETHER : 1;
    static constexpr int64_t MOST = 256;  // rows of input for which the weight is unpacked once
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const BlockCut cut;
    const Unpacker<N, D> decode;
    const BlockInput<N> input;
    Scales scales;
    const int64_t of_piece, next_row;  // blocks; scales, from one row or vector of rows to the next
    const int32_t twice;               // 1: centers have a half, and all is doubled
    std::unique_ptr<float[]> scale;    // [TOGETHER, blocks], or turned
    std::unique_ptr<int32_t[]> center; // the same
    std::unique_ptr<uint8_t[]> ends;  // rows that would be read beyond the end, with room for it
    std::unique_ptr<Eight[]> turned;  // [step, NR]
    std::unique_ptr<Eight[]> sums;    // [rows of input, NR]
    const uint8_t *from[TOGETHER];

    struct Stored {
        const Unpacker<N, D> &decode;
        const uint8_t *from[NR];
        inline INLINE __m256i operator()(int r, int64_t at) const { return decode(from[r], at); }
    };
    struct Turned {
        const Eight *from;
        inline INLINE __m256i operator()(int r, int64_t at) const { return loaded(from[at * NR + r].lanes); }
    };

  public:
    BlockRows(const Product &p, const Weight &w, const Input &x, const Output &out, const BlockCut &wanted)
        : p(p), w(w), x(x), out(out), cut(wanted), decode(p), input(p, x, cut, ACROSS ? 1 : 8),
          scales(p, w, cut.pieces),
          of_piece(EXACT ? 1 : p.piece / cut.block),
          next_row(ACROSS ? 8 : of_piece * cut.pieces.pieces), twice(p.half != 0),
          scale(new float[TOGETHER * of_piece * cut.pieces.pieces]),
          center(new int32_t[TOGETHER * of_piece * cut.pieces.pieces]),
          ends(new uint8_t[TOGETHER * decode.reach()]()),
          turned(new Eight[ACROSS ? over(cut.together * cut.width, 8) * 8 * NR : 0]),
          sums(new Eight[ACROSS ? std::min(over(x.rows, MR) * MR, MOST) * NR : 0]) {}

    void run(int64_t first, int64_t last) {
        for (int64_t m = 0; m < x.rows; m += MOST)
            for (int64_t n = first; n < last; n += TOGETHER) {
                const int count = (int)std::min((int64_t)TOGETHER, last - n);
                for (int r = 0; r < TOGETHER; r++) describe(r, std::min(n + r, last - 1));
                if constexpr (ACROSS) many(m, std::min(MOST, x.rows - m), n, count);
                else few(n, count);
            }
    }

  private:
    void describe(int r, int64_t n) {  // where a row is, its scales and centers
        const int64_t reach = decode.reach(), left = (p.rows - n) * p.row_bytes;
        from[r] = w.codes + n * p.row_bytes;
        if (reach > left) from[r] = (const uint8_t *)memcpy(ends.get() + r * reach, from[r], (size_t)left);
        scales.row(n);
        const int64_t first = ACROSS ? r : r * next_row;
        for (int64_t j = 0; j < of_piece; j++)
            for (int64_t i = 0; i < cut.pieces.pieces; i++) {
                const int64_t to = first + (i * of_piece + j) * NEXT_BLOCK;
                scale[to] = scales.scale[i] * (twice ? .5f : 1.0f);
                center[to] = (scales.center[i] * (1 + twice) + twice) & (EXACT ? -1 : N::CENTERS);
            }
    }
    Factors factors(int64_t m, int64_t r, int64_t block) const {
        if (EXACT) return {};
        const int64_t at = r * next_row + block * NEXT_BLOCK, place = m * cut.blocks + block;
        return {scale.get() + at, input.scale ? input.scale.get() + place : nullptr, center.get() + at,
                input.sums.get() + place * (ACROSS ? 1 : 8), next_row, NEXT_BLOCK, cut.blocks, twice};
    }

    void few(int64_t n, int count) {
        int32_t found[TEAM][TOGETHER];
        const int64_t steps = cut.together * cut.width, ahead = std::max(NR * p.row_bytes, FETCHED);
        for (int r = 0; r < count; r += NR) {
            Eight some[TEAM * NR] = {};
            for (int64_t block = 0, at = 0; block < cut.blocks; block += cut.together, at += steps) {
                const uint8_t *one = from[r] + at * decode.bytes, *other = from[r + 1] + at * decode.bytes;
                for (int64_t i = 0; i < steps * decode.bytes; i += 64)
                    _mm_prefetch((const char *)one + ahead + i, _MM_HINT_T0),
                        _mm_prefetch((const char *)other + ahead + i, _MM_HINT_T0);
                const int64_t blocks = std::min(cut.together, cut.blocks - block), end = decode.steps - at;
                each<3>([&](auto i) INLINE {
                    if (x.rows <= 1 << i && x.rows > (1 << i) / 2)
                        add_blocks<N, EXACT, false, NR, 1 << i>(
                            Stored{decode, {one, other}}, input.numbers.get() + at * N::STEP, input.stride, blocks,
                            cut.width, end, factors(0, r, block), some);
                });
            }
            for (int64_t i = 0; i < x.rows * NR; i++) {
                int32_t *to = found[i / NR] + r + i % NR;
                if constexpr (EXACT) *to = total_of_integers(some[i]);
                else *to = bits_of(total_of_numbers(some[i]));
            }
        }
        for (int64_t m = 0; m < x.rows; m++) finished(m, n, found[m], count);
    }

    void many(int64_t m, int64_t rows, int64_t n, int count) {
        const int64_t teams = over(rows, MR), room = cut.together * cut.width, all = over(p.columns, N::LANE);
        std::fill_n(sums.get(), teams * MR * NR, Eight{});
        for (int64_t block = 0, first = 0; block < cut.blocks; block += cut.together, first += room) {
            const int64_t blocks = std::min(cut.together, cut.blocks - block), steps = std::min(room, all - first);
            for (int64_t at = 0; at < steps; at += 8) turn(first / 8 + at / 8, turned.get() + at * NR);
            const Number *q = input.numbers.get() + m * input.stride + first * N::LANE;
            for (int64_t i = 0; i < teams; i++)
                add_blocks<N, EXACT, true, NR, MR>(Turned{turned.get()}, q + i * MR * input.stride, input.stride,
                                                   blocks, cut.width, steps, factors(m + i * MR, 0, block),
                                                   sums.get() + i * MR * NR);
        }
        for (int64_t i = 0; i < rows; i++) finished(m + i, n, sums[i * NR].lanes, count);
    }
    void turn(int64_t step, Eight *to) const {
        each<NR>([&](auto k) INLINE {
            __m256i v[8];
            each<8>([&](auto r) INLINE { v[r] = decode(from[8 * k + r], step); });
            across(v);
            each<8>([&](auto i) INLINE { _mm256_store_si256((__m256i *)to[i * NR + k].lanes, v[i]); });
        });
    }
    void finished(int64_t m, int64_t n, const int32_t *found, int count) {  // integers, or the bits of numbers
        float values[TOGETHER];
        memcpy(values, found, 4 * (size_t)count);
        const uint32_t all = (uint32_t)input.all[m];
        for (int r = 0; EXACT && r < count; r++)
            values[r] = (float)(int32_t)(((uint32_t)found[r] << twice) + (uint32_t)center[r] * all) * scale[r];
        finish(p, w, x, out, m, n, values, count);
    }
    static int32_t bits_of(float value) { return (int32_t)as_int(value); }
};

template <class N, int D> static void blocks(const Product &p, const Weight &w, const Input &x, const Output &out,
                                             int64_t first, int64_t last) {
    const bool few = x.rows <= FEW_ROWS && (p.piece >= p.columns || p.piece % N::STEP == 0);
    const BlockCut cut(p, few ? N::STEP : N::LANE, few ? 32 : 4, N::most(p));
    if (cut.exact && few) BlockRows<N, D, true, false>(p, w, x, out, cut).run(first, last);
    else if (cut.exact) BlockRows<N, D, true, true>(p, w, x, out, cut).run(first, last);
    else if (few) BlockRows<N, D, false, false>(p, w, x, out, cut).run(first, last);
    else BlockRows<N, D, false, true>(p, w, x, out, cut).run(first, last);
}

template <int D> static void wide_product(const Product &p, const Weight &w, const Input &x, const Output &out,
                                          int64_t first, int64_t last) {
    if (x.rows <= FEW_ROWS && few_wide<D>(p, w, x, out, first, last)) return;
    const BlockCut cut(p, Wide::LANE, 4, Wide::most(p));
    BlockRows<Wide, D, false, true>(p, w, x, out, cut).run(first, last);
}

template <int D> static void word_product(const Product &p, const Weight &w, const Input &x, const Output &out,
                                          int64_t first, int64_t last) {
    if constexpr (D == RAW)
        if (x.rows <= FEW_ROWS && p.piece >= p.columns) return RowsByHalves(p, w, x, out).run(first, last);
    if constexpr (D != RAW)
        if (fit_bytes(p)) return blocks<Bytes, D>(p, w, x, out, first, last);
    blocks<Words, D>(p, w, x, out, first, last);
}

#endif
