// Products some rows of the weight after another. For a few rows of input the weight is unpacked in registers; for
// more, some columns of it are unpacked and turned into what stays in the nearest cache, and read by all.

#pragma once

#include "int8_wide_few.h"
#include "int8_words_decode.h"
#include "int8_words_dots.h"
#include "int8_words_halves.h"

#ifdef WORDS

template <class N, class U, bool ACROSS> class BlockRows {
    typedef typename N::Number Number;
    static constexpr int TOGETHER = 16;  // rows of the weight
    static constexpr int MR = 4;         // of the input
    static constexpr int64_t NEXT = ACROSS ? TOGETHER : 1;
    static constexpr int64_t LANES = ACROSS ? N::LANE / 2 : N::STEP / 2;  // of sums of the input
    static constexpr int64_t MOST = 256;  // rows of input for which the weight is unpacked once
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const BlockCut cut;
    const U &decode;
    const BlockInput<N> input;
    Scales scales;
    const int64_t next_row;             // scales, from one row or vector of rows to the next
    const bool twice;                   // centers have a half, and all is doubled
    int32_t piece[8];                   // in a block, of lanes
    std::unique_ptr<float[]> scale;     // [TOGETHER, next_row], or turned
    std::unique_ptr<int32_t[]> center;  // the same
    std::unique_ptr<uint8_t[]> ends;    // rows that would be read beyond the end, with room for it
    std::unique_ptr<Eight[]> turned;    // [step, NR]
    std::unique_ptr<Eight[]> sums;      // [rows of input, NR]
    const uint8_t *from[TOGETHER];
    int without = TOGETHER;             // rows that have no centers yet

    struct Turned {
        const Eight *from;
        template <int PART> inline INLINE __m256i at(int r, int64_t step) const {
            return loaded(from[step * NR + r].lanes);
        }
    };

  public:
    BlockRows(const Product &p, const Weight &w, const Input &x, const Output &out, const BlockCut &wanted,
              const U &decode)
        : p(p), w(w), x(x), out(out), cut(wanted), decode(decode), input(p, x, cut, decode, LANES),
          scales(p, w, cut.pieces), next_row(ACROSS ? 8 : cut.exact ? 1 : cut.scales + 8), twice(p.half != 0),
          scale(new float[TOGETHER * (cut.scales + 8)]()), center(new int32_t[TOGETHER * (cut.scales + 8)]()),
          ends(new uint8_t[TOGETHER * decode.reach]()),
          turned(new Eight[ACROSS ? over(cut.together * cut.width, 8) * 8 * NR : 0]),
          sums(new Eight[ACROSS ? std::min(over(x.rows, MR) * MR, MOST) * NR : 0]) {
        for (int64_t i = 0; i < 8; i++) piece[i] = (int32_t)(i * cut.of_block / 8);
    }

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
        const int64_t left = (p.rows - n) * p.row_bytes;
        from[r] = w.codes + n * p.row_bytes;
        if (decode.reach > left)
            from[r] = (const uint8_t *)memcpy(ends.get() + r * decode.reach, from[r], (size_t)left);
        scales.row(n);
        const int64_t first = ACROSS ? r : r * next_row;
        const float whole = twice ? .5f : 1.0f;
        for (int64_t j = 0; j < cut.of_piece; j++) {
            float *to = scale.get() + first + j * NEXT;
            for (int64_t i = 0; i < cut.pieces.pieces; i++) to[i * cut.of_piece * NEXT] = scales.scale[i] * whole;
        }
        if (!w.zero && !without) return;  // they are all the same
        without -= without > 0;
        for (int64_t j = 0; j < cut.of_piece; j++)
            for (int64_t i = 0; i < cut.pieces.pieces; i++) {
                const int32_t found = scales.center[i];
                const int64_t to = first + (i * cut.of_piece + j) * NEXT;
                center[to] = cut.exact ? found * (1 + twice) + twice : N::center(found);
            }
    }
    Factors factors(int64_t m, int64_t r, int64_t block) const {
        const int64_t at = r * next_row + block * cut.of_block * NEXT, place = m * cut.blocks + block;
        Factors by = {};
        by.exact = cut.exact;
        if (cut.exact) return by;
        by.scale = scale.get() + at, by.center = center.get() + at;
        by.sums = (const char *)(input.sums.get() + place * LANES);
        if (input.scale) by.input = input.scale.get() + m * input.next_scale + block * cut.of_block;
        by.next_row = next_row, by.next_block = cut.of_block * NEXT;
        by.blocks = cut.blocks, by.next_scale = input.next_scale;
        by.twice = twice, by.piece = piece;
        return by;
    }

    void few(int64_t n, int count) {
        int32_t found[TEAM][TOGETHER];
        const int64_t ahead = std::max(NR * p.row_bytes, FETCHED);
        for (int r = 0; r < count; r += NR) {
            Eight some[TEAM * NR] = {};
            decode.add(from + r, ahead, x.rows, input.numbers.get(), input.stride, cut, factors(0, r, 0), some);
            for (int64_t i = 0; i < x.rows * NR; i++) {
                int32_t *to = found[i / NR] + r + i % NR;
                if (cut.exact) *to = total_of_integers(some[i]);
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
            // All that a line of the cache has of eight rows: lines of more rows may share the places of one
            const int64_t line = 8 * std::max((int64_t)1, 64 / decode.bytes);
            for (int64_t top = 0; top < steps; top += line)
                each<NR>([&](auto k) INLINE {
                    for (int64_t at = top; at < std::min(top + line, steps); at += 8)
                        turn<k>(first / 8 + at / 8, turned.get() + at * NR);
                });
            const Number *q = input.numbers.get() + m * input.stride + first * N::LANE;
            for (int64_t i = 0; i < teams; i++)
                (cut.exact ? add_blocks<N, 1, true, NR, MR, 1, Turned> : add_blocks<N, 1, true, NR, MR, 0, Turned>)(
                    Turned{turned.get()}, q + i * MR * input.stride, input.stride, blocks, cut.width, steps,
                    factors(m + i * MR, 0, block), sums.get() + i * MR * NR);
        }
        for (int64_t i = 0; i < rows; i++) finished(m + i, n, sums[i * NR].lanes, count);
    }
    template <int K> INLINE void turn(int64_t step, Eight *to) const {
        __m256i v[8];
        each<8>([&](auto r) INLINE { v[r] = decode.template at<0>(from[8 * K + r], step); });
        across(v);
        each<8>([&](auto i) INLINE { _mm256_store_si256((__m256i *)to[i * NR + K].lanes, v[i]); });
    }
    void finished(int64_t m, int64_t n, const int32_t *found, int count) {  // integers, or the bits of numbers
        float values[TOGETHER];
        memcpy(values, found, 4 * (size_t)count);
        const uint32_t all = (uint32_t)input.all[m];
        for (int r = 0; cut.exact && r < count; r++)
            values[r] = (float)(int32_t)(((uint32_t)found[r] << twice) + (uint32_t)center[r] * all) * scale[r];
        finish(p, w, x, out, m, n, values, count);
    }
    static int32_t bits_of(float value) { return (int32_t)as_int(value); }
};

// Whether it was done: for a few rows, where the lanes of a vector are not of two pieces
template <class N, class U> static bool few_rows(const Product &p, const Weight &w, const Input &x, const Output &out,
                                                 int64_t first, int64_t last) {
    const int64_t most = N::most(p) / U::PARTS;
    const bool whole = p.piece >= p.columns || p.piece % U::UNIT == 0;
    if (x.rows > FEW_ROWS || most < 1 || !(whole || (U::UNIT % p.piece == 0 && U::UNIT / p.piece <= 8))) return false;
    const BlockCut cut(p, U::UNIT, 32 * U::PARTS, most);
    const StoredBy<N, U> rows(p);
    BlockRows<N, Stored<N>, false>(p, w, x, out, cut, rows).run(first, last);
    return true;
}
template <int D> static bool few_rows_in_place(const Product &p, const Weight &w, const Input &x, const Output &out,
                                               int64_t first, int64_t last) {
    bool done = false;
    each<3>([&](auto i) {
        constexpr int bits = 1 << i;
        if (p.bits != bits) return;
        if constexpr (D == LOOKED_UP) done = few_rows<Bytes, InPlace<bits, BY_TABLE>>(p, w, x, out, first, last);
        else if (p.doubled) done = few_rows<Bytes, InPlace<bits, DOUBLED>>(p, w, x, out, first, last);
        else done = few_rows<Bytes, InPlace<bits, STRAIGHT>>(p, w, x, out, first, last);
    });
    return done;
}

template <class N, int D> static void many_rows(const Product &p, const Weight &w, const Input &x, const Output &out,
                                                int64_t first, int64_t last) {
    const BlockCut cut(p, N::LANE, 4, N::most(p));
    BlockRows<N, Unpacker<N, D>, true>(p, w, x, out, cut, Unpacker<N, D>(p)).run(first, last);
}

template <int D> static void wide_product(const Product &p, const Weight &w, const Input &x, const Output &out,
                                          int64_t first, int64_t last) {
    if (x.rows > FEW_ROWS || !few_wide<D>(p, w, x, out, first, last)) many_rows<Wide, D>(p, w, x, out, first, last);
}

template <int D> static void word_product(const Product &p, const Weight &w, const Input &x, const Output &out,
                                          int64_t first, int64_t last) {
    if constexpr (D == RAW) {
        if (x.rows <= FEW_ROWS && p.piece >= p.columns) return RowsByHalves(p, w, x, out).run(first, last);
    } else if (fit_bytes(p)) {
        if (few_rows_in_place<D>(p, w, x, out, first, last)) return;
        if (few_rows<Bytes, Unpacker<Bytes, D>>(p, w, x, out, first, last)) return;
        return many_rows<Bytes, D>(p, w, x, out, first, last);
    }
    if (few_rows<Words, Unpacker<Words, D>>(p, w, x, out, first, last)) return;
    many_rows<Words, D>(p, w, x, out, first, last);
}

#endif
