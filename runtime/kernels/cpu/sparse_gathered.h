// Products with few survivors in groups: inputs are read where survivors are, and no zero is multiplied.

#pragma once

#include "sparse_groups.h"
#include "sparse_survivors.h"

class Gathered {
    static constexpr int64_t FEW = 16;          // one of so many numbers stays at most
    static constexpr int64_t LANES = 16;        // sums that go on beside one another
    static constexpr int64_t INPUTS = 4 * W;    // at a time
    static constexpr int64_t CACHED = 1 << 19;  // bytes of inputs that stay in cache for all rows

    const SparsePlan &plan;
    const Job &job;
    GroupPlaces groups;
    Survivors<float> survivors;
    std::unique_ptr<uint32_t[]> units;
    std::unique_ptr<float[]> inputs, totals;

  public:
    // Whether a matrix is one of those for which this is faster
    static bool takes(const SparsePlan &plan) {
        return (plan.kind == INDICES || plan.kind == RANKS) && plan.vector == 1 && plan.kept * FEW <= plan.of;
    }
    Gathered(const SparsePlan &plan, const void *const *fields, const Job &job)
        : plan(plan), job(job), groups(plan, fields), survivors(plan, fields, plan.survivor_columns),
          units(new uint32_t[plan.survivor_columns]) {}

    void run(bool bfloat, int64_t first, int64_t last) {
        for (int64_t m = 0; m < job.rows; m += INPUTS) {
            int64_t count = std::min(INPUTS, job.rows - m), across = count == 1 ? 1 : (count + W - 1) / W * W;
            turned(bfloat, m, count, across);
            totals.reset(new float[(last - first) * across]());
            int64_t all = plan.columns / plan.of, some = std::max<int64_t>(1, CACHED / (4 * across * plan.of));
            for (int64_t group = 0; group < all; group += some)
                for (int64_t n = first; n < last; n++)
                    added(n, group, std::min(some, all - group), across, totals.get() + (n - first) * across);
            for (int64_t n = first; n < last; n++)
                for (int64_t i = 0; i < count; i++)
                    finish(job, m + i, n, totals[(n - first) * across + i] * survivors.factor(n));
        }
    }

  private:
    // Inputs `m` to `m + count`, those of one column beside one another
    void turned(bool bfloat, int64_t m, int64_t count, int64_t across) {
        inputs.reset(new float[plan.columns * across]());
        for (int64_t i = 0; i < count; i++) {
            const Bfloat *word = (const Bfloat *)job.x + (m + i) * job.stride;
            const float *real = (const float *)job.x + (m + i) * job.stride;
            for (int64_t k = 0; k < plan.columns; k++) inputs[k * across + i] = bfloat ? number(word[k]) : real[k];
        }
    }
    void added(int64_t n, int64_t group, int64_t count, int64_t across, float *total) {
        groups.get(n, group, count, units.get());
        const float *value = survivors.get(n, group * groups.kept, count * groups.kept);
        const float *x = inputs.get() + group * plan.of * across;
        switch ((across + W - 1) / W) {
            case 1: return across == 1 ? one(value, x, count, total) : several<1>(value, x, count, total);
            case 2: return several<2>(value, x, count, total);
            case 3: return several<3>(value, x, count, total);
            default: return several<4>(value, x, count, total);
        }
    }
    void one(const float *value, const float *x, int64_t count, float *total) {
        uint32_t *place = units.get();
        int64_t kept = groups.kept, all = count * kept, i = 0;
        for (int64_t g = 1; g < count; g++)
            for (int64_t j = 0; j < kept; j++) place[g * kept + j] += (uint32_t)(g * plan.of);
        float sums[LANES] = {}, whole = 0;
        for (; i + LANES <= all; i += LANES)
            for (int64_t j = 0; j < LANES; j++) sums[j] += value[i + j] * x[place[i + j]];
        for (; i < all; i++) sums[i % LANES] += value[i] * x[place[i]];
        for (int64_t j = 0; j < LANES; j++) whole += sums[j];
        *total += whole;
    }
    template <int COUNT> void several(const float *value, const float *x, int64_t count, float *total) const {
        const uint32_t *unit = units.get();
        V all[COUNT] = {};
        for (int64_t g = 0; g < count;) {
            V sums[COUNT] = {};  // of some, and sums of sums: fewer are added one after the other
            for (int64_t end = std::min(count, g + LANES); g < end; g++, x += plan.of * COUNT * W)
                for (int64_t j = 0; j < groups.kept; j++, value++, unit++) {
                    V factor = splat(*value);
                    const float *here = x + *unit * COUNT * W;
                    for (int c = 0; c < COUNT; c++) sums[c] = fused(factor, load(here + c * W), sums[c]);
                }
            for (int c = 0; c < COUNT; c++) all[c] += sums[c];
        }
        for (int c = 0; c < COUNT; c++) store(total + c * W, load(total + c * W) + all[c]);
    }
};
