// A decoder of blocks of slots of scalar codes. A scale that a slot has alone is left to the end, unless levels are
// to be rounded: without it all slots would be rounded alike, and their errors would not average out.

#pragma once

#include "cache_attention.h"

#if EIGHTS
#define INLINED __attribute__((always_inline))  // where tables of a decoder would be read from memory each time
#else
#define INLINED
#endif

template <class A, class Codes, class Exact> class Slots {
    using Number = typename A::Number;

    const Plan &plan;
    const Fields &fields;
    CodeRows rows;
    Codes codes;
    Exact exact;
    Spreader spread, spread_zero;
    const int64_t groups, stride;  // of a slot: scales; numbers with what is behind them
    const bool late;               // whether scales are left to the end
    std::unique_ptr<float[]> room;
    float *scale, *zero;  // of a block; both may be read SPARE numbers past their end

  public:
    Slots(const Plan &plan, const Fields &fields)
        : plan(plan), fields(fields), rows(plan, fields), codes(plan), exact(plan), spread(plan), spread_zero(plan),
          groups(plan.scale_columns), stride((plan.columns + CHUNK - 1) / CHUNK * CHUNK),
          late(groups == 1 && (plan.exact || std::is_same<A, Real>::value)),
          room(new float[2 * (SLOTS * groups + SPARE)]()) {
        scale = room.get(), zero = scale + SLOTS * groups + SPARE;
    }
    // Slots n to n + count, and what they are to be multiplied by
    void get(int64_t n, int64_t count, Number *out, float *factors) {
        converted(plan.scale_kind, plan.table, fields.scale, n * groups, count * groups, scale);
        if (plan.unit != 1)
            for (int64_t i = 0; i < count * groups; i++) scale[i] *= plan.unit;
        if (plan.zero_kind == CODES)
            zero_codes(n, count);
        else if (plan.zero_kind)
            converted(plan.zero_kind, plan.table, fields.zero, n * groups, count * groups, zero);
        for (int64_t i = 0; i < count; i++) factors[i] = late ? scale[i] : 1;
        if (late && !plan.zero_kind) return levels(n, count, out);
#if EIGHTS
        if (halves()) return numbers_of_halves(n, count, out);
#endif
        switch (spread.kind) {
            case ROW: return numbers<ROW>(n, count, out);
            case CHUNKS: return numbers<CHUNKS>(n, count, out);
            case PARTS: return numbers<PARTS>(n, count, out);
            default: return numbers<ANY>(n, count, out);
        }
    }

  private:
    void zero_codes(int64_t n, int64_t count) {
        const int32_t bits = plan.zero_bits, mask = (1 << bits) - 1;
        const int64_t apart = plan.zero_bytes;
        const uint8_t *bytes = (const uint8_t *)fields.zero + n * apart;
#if EIGHTS
        if (groups > 1 && (plan.rows - n - count) * apart >= 8) {  // what is read past the end is there
            const Lanes lanes(bits);
            for (int64_t i = 0; i < count; i++)
                for (int64_t g = 0; g < groups; g += 8) {  // those past the slot's are overwritten by the next
                    __m256i codes = lanes.get(bytes + i * apart + g / 8 * bits);
                    codes = _mm256_and_si256(_mm256_srlv_epi32(codes, lanes.shifts), _mm256_set1_epi32(mask));
                    store(zero + i * groups + g, (V)_mm256_cvtepi32_ps(codes));
                }
            return;
        }
#endif
        if (groups == 1)
            for (int64_t i = 0; i < count; i++) zero[i] = (float)(bytes[i * apart] & mask);
        for (int64_t i = 0; i < count && groups > 1; i++) {
            const uint8_t *next = bytes + i * apart;
            int32_t word = 0, here = 0;
            for (int64_t g = 0; g < groups; g++, word >>= bits, here -= bits) {
                if (here < bits) word |= *next++ << here, here += 8;
                zero[i * groups + g] = (float)(word & mask);
            }
        }
    }
    // `each` chunk of slots: its bytes, whether it is full, its slot, and the number of it that is first
    template <class Each> ALWAYS void chunks(int64_t n, int64_t count, Each each) {
        const int64_t row_bytes = plan.row_bytes;
        const uint8_t *bytes = fields.codes + n * row_bytes;
        if ((plan.rows - n - count) * row_bytes >= CHUNK)  // what is read past the end is there
            return chunks_of([=](int64_t i) { return bytes + i * row_bytes; }, count, each);
        chunks_of([&](int64_t i) { return rows.get(n + i); }, count, each);
    }
    template <class Row, class Each> ALWAYS void chunks_of(Row row, int64_t count, Each each) {
        const int64_t whole = plan.columns / CHUNK * CHUNK, last = stride, chunk_bytes = CHUNK / 8 * plan.bits;
        for (int64_t i = 0; i < count; i++) {
            const uint8_t *bytes = row(i);
            for (int64_t k = 0; k < whole; k += CHUNK, bytes += chunk_bytes) each(bytes, true, i, k);
            if (whole < last) each(bytes, false, i, whole);
        }
    }
    void levels(int64_t n, int64_t count, Number *out) {
        // by value: in registers, which what is written cannot change
        chunks(n, count, [codes = codes, stride = stride, out](const uint8_t *bytes, bool full, int64_t i, int64_t k) {
            codes.get(bytes, full, (typename A::Vector *)(out + i * stride + k));
        });
    }
    template <Spread KIND> void numbers(int64_t n, int64_t count, Number *out) {
        const float *scales = late ? nullptr : scale, *zeros = plan.zero_kind ? zero : nullptr;
        chunks(n, count, [=, exact = exact, stride = stride, groups = groups](const uint8_t *bytes, bool full,
                                                                             int64_t i, int64_t k) INLINED {
            constexpr int SOME = CHUNK / W;
            V values[SOME], each[SOME];
            if (KIND == ANY && !k) {
                if (scales) spread.row(scales + i * groups, groups);
                if (zeros) spread_zero.row(zeros + i * groups, groups);
            }
            exact.get(bytes, full, values);
            if (zeros) {
                spread_zero.template all<KIND>(zeros + i * groups, k, each);
#pragma GCC unroll 16
                for (int j = 0; j < SOME; j++) values[j] -= each[j];
            }
            if (scales) {
                spread.template all<KIND>(scales + i * groups, k, each);
#pragma GCC unroll 16
                for (int j = 0; j < SOME; j++) values[j] *= each[j];
            }
#pragma GCC unroll 16
            for (int j = 0; j < SOME; j += 2) put_two(out + i * stride + k + j * W, values[j], values[j + 1]);
        });
    }
#if EIGHTS
    // Each half of a chunk has one scale
    bool halves() const {
        const int64_t size = plan.share_columns;
        return groups > 1 && size >= CHUNK / 2 && !(size & (size - 1));
    }
    void numbers_of_halves(int64_t n, int64_t count, Number *out) {
        const float *zeros = plan.zero_kind ? zero : nullptr;
        const int shift = __builtin_ctzll((uint64_t)plan.share_columns);
        chunks(n, count, [=, exact = exact, stride = stride, groups = groups, scales = scale](
                             const uint8_t *bytes, bool full, int64_t i, int64_t k) INLINED {
            constexpr int HALF = CHUNK / W / 2;
            V values[2 * HALF];
            exact.get(bytes, full, values);
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const int64_t at = i * groups + ((k + half * HALF * W) >> shift);
                const V by = splat(scales[at]), from = zeros ? splat(zeros[at]) : V{};
#pragma GCC unroll 4
                for (int j = half * HALF; j < (half + 1) * HALF; j++)
                    store(out + i * stride + k + j * W, (values[j] - from) * by);
            }
        });
    }
#endif
};
