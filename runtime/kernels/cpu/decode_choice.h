// Which decoder of scalar codes suits a plan.

#pragma once

#include <type_traits>

#include "decode_eights.h"
#include "decode_scalar.h"

// `use` a decoder that suits the plan
template <class A, class Use> static auto decided(const Plan &plan, Use use) {
#if WIDE
    constexpr bool REAL = std::is_same<A, Real>::value;
    bool many = plan.bits > 6;
    if constexpr (REAL) {
        if (plan.few) return use.template with<A, FewCodes, FewCodes>();
        if (!plan.exact) return use.template with<A, PlainCodes, PlainCodes>();
        return many ? use.template with<A, Words<true>, Words<true>>()
                    : use.template with<A, Words<false>, Words<false>>();
    } else {
        if (plan.few && plan.bits <= 4) return use.template with<A, Words<false>, FewCodes>();
        if (!plan.exact)
            return many ? use.template with<A, Words<true>, PlainCodes>()
                        : use.template with<A, Words<false>, PlainCodes>();
        return many ? use.template with<A, Words<true>, Words<true>>()
                    : use.template with<A, Words<false>, Words<false>>();
    }
#elif EIGHTS
    using Grids = Strictly<Four<Grid>>;
    if (Grid::fits(plan)) return use.template with<A, Grids, Grids>();
    if (Eight::fits(plan)) return use.template with<A, Strictly<Four<Eight>>, Strictly<Four<Eight>>>();
    if (Sixteen::fits(plan)) return use.template with<A, Strictly<Sixteen>, Strictly<Sixteen>>();
    using Others = Eights<Floats<ANY_BITS>>;
    if (Floats<FOUR>::fits(plan)) return use.template with<A, Eights<Floats<FOUR>>, Eights<Floats<FOUR>>>();
    if (Floats<FIVE>::fits(plan)) return use.template with<A, Eights<Floats<FIVE>>, Eights<Floats<FIVE>>>();
    if (Floats<ANY_BITS>::fits(plan)) return use.template with<A, Others, Others>();
    return use.template with<A, Strictly<Four<Gathered>>, Strictly<Four<Gathered>>>();
#else
    return use.template with<A, PlainCodes, PlainCodes>();
#endif
}
