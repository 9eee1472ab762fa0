// One or two inputs with AVX2: levels are decoded in registers and multiplied there, scales go to sums of groups
// or, where groups are small, to the levels. For more inputs, which no longer fit the first cache as long as a row,
// strip.h is faster.

#pragma once

#include "decode_eights.h"
#include "decode_scalar.h"
#include "few_sixteen.h"

#if EIGHTS
template <class Codes, bool SMALL, bool ZEROS, int M> class FewEights {
    static constexpr int VECTORS = UNIT / W;
    static constexpr bool LOOSE = !ZEROS && !(SMALL && Codes::CROSSED);  // whether numbers need not be levels

    const Job &job;
    const Plan &plan;
    CodeRows rows;
    Codes tables;
    Scales table;
    Spreader spread;
    std::unique_ptr<float[]> crossed;
    const float *x;
    int64_t stride;

  public:
    FewEights(const Job &job, const Plan &plan, const Fields &fields)
        : job(job), plan(plan), rows(plan, fields), tables(plan), table(plan, fields), spread(plan),
          x((const float *)job.x), stride(job.stride) {
        if (LOOSE && Codes::CROSSED) cross();
    }

    void run(int64_t first, int64_t last) {
        const Codes codes = tables;  // copies, of which the compiler sees that nothing changes them
        const int64_t whole = plan.columns / UNIT, step = UNIT / 8 * plan.bits;
        const int64_t per = SMALL || plan.scale_columns == 1 ? whole + 1 : plan.share_columns / UNIT;
        uint8_t room[2 * UNIT] = {};
        for (int64_t n = first; n < last; n++) {
            table.row(n);
            const float *scale = table.scale, *zero = table.zero;
            const uint8_t *bytes = rows.get(n);
            typename Codes::Seen seen = {};
            V sums[M] = {}, total[M] = {};  // of a group, and of those before
            for (int64_t u = 0, left = per; u < whole; u++, bytes += step) {
                ahead(bytes);
                unit(codes, bytes, scale, zero, u * UNIT, seen, sums);
                if (--left == 0) scaled(sums, *scale, total), left = per, scale++, zero++;
            }
            if (whole * UNIT < plan.columns) {
                memcpy(room, bytes, (size_t)(plan.row_bytes - whole * step));
                unit(codes, room, scale, zero, whole * UNIT, seen, sums);
            }
            scaled(sums, SMALL ? 1 : *scale, total);
            const float factor = LOOSE ? codes.spoilt(seen) ? NAN : codes.scale() : 1;
            for (int m = 0; m < M; m++) finish(job, m, n, sum(total[m]) * factor);
        }
    }

  private:
    void cross() {  // of each sixteen the even ones, then the odd ones
        stride = (plan.columns + CHUNK - 1) / CHUNK * CHUNK;
        crossed.reset(new float[M * stride]);
        for (int m = 0; m < M; m++)
            for (int64_t k = 0; k < stride; k += 16)
                for (int i = 0; i < 16; i++) crossed[m * stride + k + i] = x[m * job.stride + k + i % 8 * 2 + i / 8];
        x = crossed.get();
    }
    static ALWAYS void scaled(V *sums, float scale, V *total) {
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) total[m] = fused(sums[m], splat(scale), total[m]), sums[m] = V{};
    }
    // `scale` and `zero`: of the row where they are SMALL, and else of the unit
    ALWAYS void unit(const Codes &codes, const uint8_t *bytes, const float *scale, const float *zero, int64_t k,
                     typename Codes::Seen &seen, V *sums) const {
        V values[VECTORS], here[2][M];
        if constexpr (LOOSE) codes.loose(bytes, values, seen);
        else codes.unit(bytes, values);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            if (ZEROS) values[i] -= SMALL ? spread.template get<PARTS>(zero, k + i * W) : splat(*zero);
            if (SMALL) values[i] *= spread.template get<PARTS>(scale, k + i * W);
#pragma GCC unroll 2
            for (int m = 0; m < M; m++) {
                const V inputs = load(x + m * stride + k + i * W);
                here[i / 2][m] = i % 2 ? fused(values[i], inputs, here[i / 2][m]) : values[i] * inputs;
            }
        }
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) sums[m] += here[0][m] + here[1][m];
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
    if (few_sixteen(job, plan, fields, first, last)) return true;
    const Spread kind = spread_of(plan);
    const bool small = kind == PARTS && plan.share_columns < UNIT;
    if (kind == ANY || job.rows > 2) return false;
    if (small && plan.zero_kind) return few_inputs<Codes, true, true>(job, plan, fields, first, last), true;
    if (small) return few_inputs<Codes, true, false>(job, plan, fields, first, last), true;
    if (plan.zero_kind) return few_inputs<Codes, false, true>(job, plan, fields, first, last), true;
    return few_inputs<Codes, false, false>(job, plan, fields, first, last), true;
}
#endif
