// Linears on matrices of numbers on a trellis.

#include "trellis_values.h"

template <class Number> class TrellisRows {
    static constexpr bool WORDS = std::is_same<Number, Bfloat>::value;

    const TrellisPlan &plan;
    RowScales scales;
    Bits bits;
    Values values;
    std::unique_ptr<float[]> room;
#if LINEAR
    std::unique_ptr<Ranked> ranked;
#endif

  public:
    TrellisRows(const TrellisPlan &plan, const void *const *fields)
        : plan(plan), scales(scalar_plan(plan), fields[SCALES_FIELD]), bits(plan, (const uint8_t *)fields[BITS_FIELD]),
          values(plan, (const float *)fields[VALUES_FIELD]), room(new float[padded(plan.columns)]) {
#if LINEAR
        if (WORDS && plan.code == RANKED && scales.by_row)
            ranked.reset(new Ranked(plan, *(const RankTables *)fields[RANKS_FIELD]));
#endif
    }
    float factor(int64_t n) { return scales.factor(n) * plan.unit; }
    bool scaled() const { return plan.unit != 1 || scales.by_row; }

    void fill(int64_t n, int64_t first, int64_t count, Number *out) {
        const uint8_t *from = bits.get(n, first, count);
#if LINEAR
        if constexpr (WORDS)
            if (ranked)
                return by_windows(plan, [&](auto windows) {
                    ranked->template get<decltype(windows)::value>(from, plan.bits, count, out);
                });
#endif
        float *numbers = room.get();
        if constexpr (!WORDS) numbers = out;
        values.get(from, count, numbers);
        if (!scales.by_row) scales.scale(n, first, count, numbers);
        if constexpr (WORDS) narrowed(numbers, count, out);
    }
};

static bool nothing(const TrellisPlan &, const void *const *, const Job &, bool, int64_t, int64_t) { return false; }

RHOC_EXPORTS(TrellisPlan, TrellisRows, nothing)
