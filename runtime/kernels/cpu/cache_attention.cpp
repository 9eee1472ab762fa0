// Attention over keys and values of scalar codes.

#include "cache_attention.h"
#include "cache_slots.h"

struct Units {
    const Attention &of;
    const Plan &plan;
    const Fields &keys, &values;
    int64_t first, last;

    template <class A, class Codes, class Exact> void with() {
        Attending<A, Slots<A, Codes, Exact>> attending(of, {plan, keys}, {plan, values});
        for (int64_t unit = first; unit < last; unit++) attending.run(unit);
    }
};

extern "C" {

int64_t rhoc_attention_bytes() { return sizeof(Attention); }
int64_t rhoc_rows_of_unit() { return ROWS; }

// Whether queries of bfloat16 are multiplied as they are, and not as float32
int32_t rhoc_pairs() { return PAIRS && WIDE; }

// Units `first` to `last`: blocks of queries, all those of a head before the next. `stored` are codes, scales and
// zero points of keys, then of values; `reach` the slots from the first to the last, of all sequences and heads.
void rhoc_cache_attention(const Attention *of, const Plan *given, const void *const *stored, int64_t reach,
                          int32_t pairs, int64_t first, int64_t last) {
    Plan plan = *given;
    plan.rows = reach;
    Fields keys{(const uint8_t *)stored[0], stored[1], stored[2], nullptr};
    Fields values{(const uint8_t *)stored[3], stored[4], stored[5], nullptr};
    Units units{*of, plan, keys, values, first, last};
#if PAIRS && WIDE
    if (pairs) return decided<Pairs>(plan, units);
#endif
    decided<Real>(plan, units);
}
}
