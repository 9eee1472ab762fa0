// One or two inputs with AVX2: levels are decoded in registers and multiplied there, scales go to sums of groups
// or, where groups are small, to the levels. For more inputs, which no longer fit the first cache as long as a row,
// strip.h is faster.

#pragma once

#include "decode_eights.h"
#include "decode_scalar.h"

#if EIGHTS
template <class Codes, bool SMALL, bool ZEROS, int M> class FewEights {
    static constexpr int VECTORS = UNIT / W, CHAINS = 4 / M;  // of a unit that are added up apart
    using Sums = V[CHAINS][M];

    const Job &job;
    const Plan &plan;
    CodeRows rows;
    Codes tables;
    Scales table;
    Spreader spread;

  public:
    FewEights(const Job &job, const Plan &plan, const Fields &fields)
        : job(job), plan(plan), rows(plan, fields), tables(plan), table(plan, fields), spread(plan) {}

    void run(int64_t first, int64_t last) {
        const Codes codes = tables;  // copies, of which the compiler sees that nothing changes them
        const float *const x = (const float *)job.x;
        const int64_t units = (plan.columns + UNIT - 1) / UNIT, whole = plan.columns / UNIT;
        const int64_t step = UNIT / 8 * plan.bits, stride = job.stride, rest = plan.row_bytes - whole * step;
        const int64_t per = SMALL || plan.scale_columns == 1 ? units : plan.share_columns / UNIT;
        uint8_t room[2 * UNIT] = {};
        for (int64_t n = first; n < last; n++) {
            table.row(n);
            const float *const scale = table.scale, *const zero = table.zero;
            const uint8_t *bytes = rows.get(n);
            V total[M] = {};
            for (int64_t u = 0, g = 0; u < units; g++) {
                Sums sums = {};
                const int64_t end = std::min(units, u + per);
                for (; u < std::min(whole, end); u++, bytes += step)
                    unit(codes, bytes, scale, zero, g, x + u * UNIT, stride, u * UNIT, sums);
                for (; u < end; u++) {
                    memcpy(room, bytes, (size_t)rest);
                    unit(codes, room, scale, zero, g, x + u * UNIT, stride, u * UNIT, sums);
                }
#pragma GCC unroll 2
                for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
                    for (int c = 1; c < CHAINS; c++) sums[0][m] += sums[c][m];
                    total[m] = fused(sums[0][m], splat(SMALL ? 1 : scale[g]), total[m]);
                }
            }
            for (int m = 0; m < M; m++) finish(job, m, n, sum(total[m]));
        }
    }

  private:
    ALWAYS void unit(const Codes &codes, const uint8_t *bytes, const float *scale, const float *zero, int64_t g,
                     const float *x, int64_t stride, int64_t k, Sums &sums) const {
        V values[VECTORS];
        codes.unit(bytes, values);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            if (ZEROS) values[i] -= SMALL ? spread.template get<PARTS>(zero, k + i * W) : splat(zero[g]);
            if (SMALL) values[i] *= spread.template get<PARTS>(scale, k + i * W);
#pragma GCC unroll 2
            for (int m = 0; m < M; m++)
                sums[i % CHAINS][m] = fused(values[i], load(x + m * stride + i * W), sums[i % CHAINS][m]);
        }
    }
};

template <class Codes, bool SMALL, bool ZEROS>
static void few_inputs(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    if (job.rows == 1) return FewEights<Codes, SMALL, ZEROS, 1>(job, plan, fields).run(first, last);
    FewEights<Codes, SMALL, ZEROS, 2>(job, plan, fields).run(first, last);
}

// Results for one or two inputs; false where scales lie in a way that this does not know.
template <class Codes>
static bool few_eights(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    const Spread kind = spread_of(plan);
    const bool small = kind == PARTS && plan.share_columns < UNIT;
    if (kind == ANY || job.rows > 2) return false;
    if (small && plan.zero_kind) return few_inputs<Codes, true, true>(job, plan, fields, first, last), true;
    if (small) return few_inputs<Codes, true, false>(job, plan, fields, first, last), true;
    if (plan.zero_kind) return few_inputs<Codes, false, true>(job, plan, fields, first, last), true;
    return few_inputs<Codes, false, false>(job, plan, fields, first, last), true;
}
#endif
