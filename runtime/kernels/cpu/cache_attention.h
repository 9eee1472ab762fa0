// softmax(q K^T root) V of keys and values that decoders hand over slot by slot, a block of slots at a time.
//
// The softmax goes along with the blocks: its maximum and its sum are corrected at each (Milakov and Gimelshein,
// 1805.02867, Alg. 3; with the weighted sum of values, Rabe and Staats, 2112.05682). Scores, shares and sums are
// float32; shares are multiplied with values as `A` of strip.h multiplies.

#pragma once

#include "decode_choice.h"

constexpr int64_t SLOTS = 64;  // of a block, which stays in the first cache
constexpr int64_t ROWS = 64;   // queries that a decoded block is multiplied with

struct Attention {
    const void *queries;       // [sequences, heads, rows, stride], zeros behind the features of each
    const int64_t *positions;  // [sequences, tokens]: row r sees the slots up to that of token r % tokens
    void *out;                 // [sequences, heads, rows, features]
    int64_t heads, rows, tokens, slots, features;
    int64_t stride;                     // numbers from one query to the next, a multiple of CHUNK
    int64_t sequence_apart, head_apart;  // slots from those of one to those of the next, where they are stored
    float root;                         // multiplies scores
    int32_t bfloat;                     // whether the result is bfloat16, and not float32
    int64_t blocks() const { return (rows + ROWS - 1) / ROWS; }
};

// exp(x) for x up to 0, to two units in the last place (the polynomial of Cephes' expf); 0 where that is all but 0
static inline V powers(V x) {
    const V least = splat(-87);
    V inside = x < least ? least : x;
    V n = (inside * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest integer
    V r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), inside));
    V series = splat(1.9875691500e-4f);
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        series = fused(series, r, splat(next));
    V power = fused(series, r * r, r) + 1.0f;
    V two = floats((__builtin_convertvector(n, I) + 127) << 23);
    return x < least ? V{} : power * two;
}

// The softmax of a query so far
struct Softmax {
    float highest = -INFINITY, total = 0;

    // `seen` scores (room for a whole block) become shares under the new maximum, the others 0. What shares before
    // are to be multiplied by.
    float take(float *scores, int64_t seen) {
        for (int64_t i = seen; i < SLOTS; i++) scores[i] = -INFINITY;
        V top = splat(highest);
        for (int64_t i = 0; i < seen; i += W) {
            V some = load(scores + i);
            top = some > top ? some : top;
        }
        float lanes[W], before = highest;
        store(lanes, top);
        for (int i = 0; i < W; i++) highest = std::max(highest, lanes[i]);
        V sums = {};
        for (int64_t i = 0; i < SLOTS; i += W) {
            V shares = powers(load(scores + i) - highest);
            store(scores + i, shares);
            sums += shares;
        }
        float kept = before == highest ? 1 : std::exp(before - highest);
        total = total * kept + sum(sums);
        return kept;
    }
};

// Shares times values, added up over slots, `SPAN` features in four vectors and `STEP` slots at a time
template <class A> struct Mixing {
    static constexpr int64_t STEP = 1, SPAN = 4 * W;
    template <int M> static inline void add(const float *shares, const float *values, int64_t, V (*total)[4]) {
        V value[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) value[i] = load(values + i * W);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            V share = splat(shares[m * SLOTS]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) total[m][i] = fused(share, value[i], total[m][i]);
        }
    }
    static int64_t place(int64_t feature) { return feature; }  // where the sum of a feature is
};

#if PAIRS
template <> struct Mixing<Pairs> {
    static constexpr int64_t STEP = 2, SPAN = 4 * W;
    template <int M>
    static inline void add(const Bfloat *shares, const Bfloat *values, int64_t stride, V (*total)[4]) {
        __m512i value[4];
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += 2) {
            __m512i one = Pairs::get(values + i * W), next = Pairs::get(values + stride + i * W);
            value[i] = _mm512_unpacklo_epi16(one, next), value[i + 1] = _mm512_unpackhi_epi16(one, next);
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            int32_t pair;
            memcpy(&pair, shares + m * SLOTS, 4);
            __m512i share = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) total[m][i] = Pairs::add(total[m][i], value[i], share);
        }
    }
    static int64_t place(int64_t feature) {  // four features in turn are in one vector and the next
        int64_t vector = feature / 32 * 2 + feature / 4 % 2;
        return vector * W + feature % 32 / 8 * 4 + feature % 4;
    }
};
#endif

// mixed = mixed * kept + shares of M queries with `slots` values
template <class A, int M>
static void mix(const typename A::Number *shares, const typename A::Number *values, int64_t stride, int64_t slots,
                const float *kept, float *mixed) {
    for (int64_t k = 0; k < stride; k += Mixing<A>::SPAN) {
        V total[M][4] = {};  // of these slots alone: one small sum, and not one more number for a large one each time
        for (int64_t s = 0; s < slots; s += Mixing<A>::STEP)
            Mixing<A>::template add<M>(shares + s, values + s * stride + k, stride, total);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                float *to = mixed + m * stride + k + i * W;
                store(to, fused(load(to), splat(kept[m]), total[m][i]));
            }
    }
}

template <class A, int M = 4>
static void mix_some(int64_t rows, const typename A::Number *shares, const typename A::Number *values,
                     int64_t stride, int64_t slots, const float *kept, float *mixed) {
    if constexpr (M > 1)
        if (rows < M) return mix_some<A, M - 1>(rows, shares, values, stride, slots, kept, mixed);
    mix<A, M>(shares, values, stride, slots, kept, mixed);
}

// Decoder: `void get(int64_t n, int64_t count, Number *out, float *factors)`, the numbers of slots from n on, `stride`
// of them in each, and what they are to be multiplied by.
template <class A, class Decoder> class Attending {
    using Number = typename A::Number;

    const Attention &of;
    Decoder keys, values;
    std::unique_ptr<uint8_t[]> memory;
    Number *block, *shares;         // [SLOTS, stride]; [ROWS, SLOTS]
    float *scores, *mixed;          // [ROWS, SLOTS]; [ROWS, stride]
    float factor[SLOTS] = {}, kept[ROWS];
    int64_t seen[ROWS];             // slots of the block
    Softmax softmax[ROWS];

  public:
    Attending(const Attention &of, Decoder keys, Decoder values)
        : of(of), keys(std::move(keys)), values(std::move(values)) {
        const int64_t sizes[] = {SLOTS * of.stride * (int64_t)sizeof(Number), ROWS * SLOTS * (int64_t)sizeof(Number),
                                 ROWS * SLOTS * 4, ROWS * of.stride * 4};
        int64_t all = 64;
        for (int64_t size : sizes) all += size;
        memory.reset(new uint8_t[all]());
        uint8_t *at = (uint8_t *)(((uintptr_t)memory.get() + 63) & ~(uintptr_t)63);
        block = (Number *)at, shares = (Number *)(at += sizes[0]);
        scores = (float *)(at += sizes[1]), mixed = (float *)(at + sizes[2]);
    }

    // ROWS queries, one block of them, of a head of a sequence
    void run(int64_t unit) {
        const int64_t head = unit / of.blocks(), first = unit % of.blocks() * ROWS;
        const int64_t rows = std::min(ROWS, of.rows - first), sequence = head / of.heads;
        const int64_t place = sequence * of.sequence_apart + head % of.heads * of.head_apart;
        const int64_t *positions = of.positions + sequence * of.tokens, at = head * of.rows + first;
        int64_t last = 0;
        for (int64_t r = 0; r < rows; r++) last = std::max(last, positions[(first + r) % of.tokens] + 1);
        last = std::min(last, of.slots);
        std::fill(softmax, softmax + rows, Softmax());
        std::fill(mixed, mixed + rows * of.stride, 0.0f);
        for (int64_t slot = 0; slot < last; slot += SLOTS) {
            const int64_t count = std::min(SLOTS, last - slot);
            for (int64_t r = 0; r < rows; r++)
                seen[r] = std::min(count, positions[(first + r) % of.tokens] + 1 - slot);
            score((const Number *)of.queries + at * of.stride, rows, place + slot, count);
            add(rows, place + slot, count);
        }
        for (int64_t r = 0; r < rows; r++)
            if (of.bfloat)
                finish(r, (Bfloat *)of.out + (at + r) * of.features);
            else
                finish(r, (float *)of.out + (at + r) * of.features);
    }

  private:
    static int64_t most(const int64_t *seen, int64_t rows) { return *std::max_element(seen, seen + rows); }

    // Shares of rows in the slots of a block, and what those before are multiplied by
    void score(const Number *queries, int64_t rows, int64_t slot, int64_t count) {
        keys.get(slot, count, block, factor);
        for (int64_t i = 0; i < count; i++) factor[i] *= of.root;
        for (int64_t m = 0; m < rows; m += DEEP) {
            const int64_t deep = std::min<int64_t>(DEEP, rows - m), slots = most(seen + m, deep);
            for (int64_t s = 0; s < slots; s += TILE) {
                float out[DEEP][TILE];
                multiplied_some<A>(deep, queries + m * of.stride, of.stride, block + s * of.stride, of.stride,
                                   of.stride, out);
                for (int64_t j = 0; j < deep; j++)
#pragma GCC unroll 4
                    for (int i = 0; i < TILE; i++) scores[(m + j) * SLOTS + s + i] = out[j][i] * factor[s + i];
            }
            for (int64_t r = m; r < m + deep; r++)
                if (seen[r] > 0) kept[r] = softmax[r].take(scores + r * SLOTS, seen[r]);
        }
    }
    void add(int64_t rows, int64_t slot, int64_t count) {
        values.get(slot, count, block, factor);
        std::fill(factor + count, factor + SLOTS, 0.0f);
        for (int64_t r = 0; r < rows; r++) {
            if (seen[r] <= 0) {
                kept[r] = 1;
                std::fill(shares + r * SLOTS, shares + (r + 1) * SLOTS, Number(0));
            } else {
                for (int64_t i = 0; i < SLOTS; i += W)
                    store(shares + r * SLOTS + i, load(scores + r * SLOTS + i) * load(factor + i));
            }
        }
        for (int64_t m = 0; m < rows; m += 4) {
            const int64_t some = std::min<int64_t>(4, rows - m), slots = most(seen + m, some);
            if (slots > 0)
                mix_some<A>(some, shares + m * SLOTS, block, of.stride, slots, kept + m, mixed + m * of.stride);
        }
    }
    template <class T> void finish(int64_t row, T *out) const {
        const float *from = mixed + row * of.stride;
        for (int64_t i = 0; i < of.features; i++) put(out + i, from[Mixing<A>::place(i)] / softmax[row].total);
    }
};
