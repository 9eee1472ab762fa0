// Up to four inputs: levels are looked up in registers and multiplied there, scales go to sums of groups.

#pragma once

#include "decode_scalar.h"

#if WIDE
// Sums of inputs that share a zero point, [inputs, groups and zeros up to whole vectors]
static inline int64_t whole_vectors(int64_t count) { return (count + W - 1) / W * W; }
template <class Number> static std::unique_ptr<float[]> shared_sums(const Job &job, const Plan &plan) {
    int64_t groups = plan.scale_columns, size = std::min(plan.share_columns, plan.columns);
    int64_t apart = whole_vectors(groups);
    std::unique_ptr<float[]> out(new float[job.rows * apart]());
    for (int64_t m = 0; m < job.rows; m++) {
        const Number *x = (const Number *)job.x + m * job.stride;
        for (int64_t g = 0; g < groups; g++)
            for (int64_t k = g * size; k < std::min(plan.columns, (g + 1) * size); k++)
                out[m * apart + g] += number(x[k]);
    }
    return out;
}

template <class A, class Codes, Spread KIND, int M> class Few {
    using Number = typename A::Number;
    using Vector = typename A::Vector;
    static constexpr int SIZE = (int)A::SIZE, PER = CHUNK / SIZE;   // vectors of a chunk
    static constexpr int CHAINS = M == 1 ? 4 : M * PER <= 8 ? 2 : 1;  // chunks that are added up apart

    const Job &job;
    const Plan &plan;
    CodeRows rows;
    Codes tables;  // copied where they are used, to where the compiler sees that nothing changes them
    Scales table;
    Spreader spread;
    const Number *x[M];  // where there are fewer, the last again
    int64_t whole = plan.columns / CHUNK;  // chunks
    bool rest = plan.columns % CHUNK;
    int64_t step = CHUNK / 8 * plan.bits;  // bytes of a chunk

  public:
    Few(const Job &job, const Plan &plan, const Fields &fields)
        : job(job), plan(plan), rows(plan, fields), tables(plan), table(plan, fields), spread(plan, SIZE / W) {
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) x[m] = (const Number *)job.x + std::min<int64_t>(m, job.rows - 1) * job.stride;
    }

    void run(int64_t first, int64_t last) {
        std::unique_ptr<float[]> shared;
        if (plan.zero_kind) shared = shared_sums<Number>(job, plan);
        for (int64_t n = first; n < last; n++) {
            table.row(n);
            V total[M];
            const uint8_t *bytes = rows.get(n);
            if constexpr (KIND == ROW) row(bytes, total);
            if constexpr (KIND == CHUNKS) {
                constexpr bool LIGHT = PER == 2;  // a chunk takes few instructions, and loops over two would tell
                if (LIGHT && plan.share_columns == CHUNK) groups<LIGHT ? 1 : 0>(bytes, total);
                else if (LIGHT && plan.share_columns == 2 * CHUNK) groups<LIGHT ? 2 : 0>(bytes, total);
                else groups<0>(bytes, total);
            }
            if constexpr (KIND == PARTS) parts(bytes, total);
            for (int m = 0; m < job.rows; m++) {
                float value = sum(total[m]) * (KIND == ROW ? table.scale[0] : 1);
                if (plan.zero_kind) value -= of_zeros(shared.get() + m * whole_vectors(plan.scale_columns));
                finish(job, m, n, value);
            }
        }
    }

  private:
    ALWAYS void chunk(const Codes &codes, const uint8_t *bytes, int64_t c, bool full, V (*total)[PER]) const {
        Vector values[PER];
        codes.get(bytes + c * step, full, values);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
#pragma GCC unroll 8
            for (int i = 0; i < PER; i++)
                total[m][i] = A::add(total[m][i], values[i], A::get(x[m] + c * CHUNK + i * SIZE));
    }
    static inline V joined(const V *part) {
        return PER == 2 ? part[0] + part[1] : (part[0] + part[1]) + (part[2 % PER] + part[3 % PER]);
    }

    ALWAYS void row(const uint8_t *bytes, V *total) const {
        const Codes codes = tables;
        V part[CHAINS][M][PER] = {};
        int64_t c = 0;
        for (; c + CHAINS <= whole; c += CHAINS)
#pragma GCC unroll 8
            for (int i = 0; i < CHAINS; i++) chunk(codes, bytes, c + i, true, part[i]);
        for (; c < whole; c++) chunk(codes, bytes, c, true, part[0]);
        if (rest) chunk(codes, bytes, whole, false, part[CHAINS - 1]);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            total[m] = joined(part[0][m]);
#pragma GCC unroll 8
            for (int i = 1; i < CHAINS; i++) total[m] += joined(part[i][m]);
        }
    }
    // FIXED: chunks of a group, where they are few; 0: any number
    template <int FIXED> ALWAYS void groups(const uint8_t *bytes, V *total) const {
        const Codes codes = tables;
        const float *scale = table.scale;
        int64_t per = FIXED ? FIXED : plan.share_columns / CHUNK, full = whole / per, c = 0;
        V sums[M] = {};
        for (int64_t g = 0; g < full; g++) {
            V part[2][M][PER] = {};
#pragma GCC unroll 2
            for (int64_t i = 0; i < per; i++) chunk(codes, bytes, c++, true, part[FIXED ? i : 0]);
            gathered(part, scale[g], sums);
        }
        if (c < whole || rest) {  // a group that is shorter
            V part[2][M][PER] = {};
            for (; c < whole; c++) chunk(codes, bytes, c, true, part[0]);
            if (rest) chunk(codes, bytes, whole, false, part[1]);
            gathered(part, scale[full], sums);
        }
        memcpy(total, sums, sizeof sums);
    }
    static ALWAYS void gathered(V (*part)[M][PER], float scale, V *sums) {
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) sums[m] = fused(joined(part[0][m]) + joined(part[1][m]), splat(scale), sums[m]);
    }
    ALWAYS void parts(const uint8_t *bytes, V *total) const {
        const Codes codes = tables;
        V part[M][PER] = {};
        for (int64_t c = 0; c < whole; c++) scaled(codes, bytes, c, true, part);
        if (rest) scaled(codes, bytes, whole, false, part);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) total[m] = joined(part[m]);
    }
    ALWAYS void scaled(const Codes &codes, const uint8_t *bytes, int64_t c, bool full, V (*total)[PER]) const {
        V part[M][PER] = {};
        chunk(codes, bytes, c, full, part);
#pragma GCC unroll 8
        for (int i = 0; i < PER; i++) {
            V scale = spread.template get<PARTS>(table.scale, c * CHUNK + i * SIZE);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) total[m][i] = fused(part[m][i], scale, total[m][i]);
        }
    }
    float of_zeros(const float *shared) const {
        V total{};
        for (int64_t g = 0; g < plan.scale_columns; g += W)
            total = fused(load(table.scale + g) * load(table.zero + g), load(shared + g), total);
        return sum(total);
    }
};

template <class A, class Codes, Spread KIND>
static void few_inputs(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    switch (job.rows) {
        case 1: return Few<A, Codes, KIND, 1>(job, plan, fields).run(first, last);
        case 2: return Few<A, Codes, KIND, 2>(job, plan, fields).run(first, last);
        default: return Few<A, Codes, KIND, 4>(job, plan, fields).run(first, last);
    }
}

// Results for up to four inputs; false where scales lie in a way that this does not know.
template <class A, class Codes>
static bool few(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    if (std::is_same<A, Real>::value && plan.zero_kind) return false;  // sums of x times code and of x cancel
    switch (spread_of(plan)) {
        case ROW: return few_inputs<A, Codes, ROW>(job, plan, fields, first, last), true;
        case CHUNKS: return few_inputs<A, Codes, CHUNKS>(job, plan, fields, first, last), true;
        case PARTS: return few_inputs<A, Codes, PARTS>(job, plan, fields, first, last), true;
        default: return false;
    }
}
#endif
