// Weight-only linears, lookups and decoding of matrices of scalar codes.

#include "decode_choice.h"
#include "few.h"
#include "few_eights.h"
#include "one_input.h"

struct Product {
    const Job &job;
    const Plan &plan;
    const Fields &fields;
    int64_t first, last;

    template <class A, class Codes, class Exact> void with() {
#if WIDE
        if constexpr (!std::is_same<Codes, PlainCodes>::value)
            if (job.rows <= 4 && few<A, Codes>(job, plan, fields, first, last)) return;
#elif EIGHTS
        if (few_eights<Codes>(job, plan, fields, first, last)) return;
#endif
        Scalar<A, Codes, Exact> decoder(plan, fields);
        strip<A>(job, decoder, first, last);
    }
};

struct Rows {
    const Plan &plan;
    const Fields &fields;
    const int64_t *which;  // rows, or null for `first` to `last` of all
    void *out;
    bool bfloat;
    int64_t first, last;

    template <class A, class Codes, class Exact> void with() {
        Scalar<A, Codes, Exact> decoder(plan, fields);
        for (int64_t i = first; i < last; i++) {
            int64_t n = which ? which[i] : i;
            if (bfloat)
                decoder.row(n, (Bfloat *)out + i * plan.columns);
            else
                decoder.row(n, (float *)out + i * plan.columns);
        }
    }
};

extern "C" {

int64_t rhoc_plan_bytes() { return sizeof(Plan); }

// What the processor has: 0 nothing that matters here, 1 byte permutations of 512 bits, 2 products of bfloat16 too,
// 3 AVX2 alone
int32_t rhoc_has() { return EIGHTS ? 3 : WIDE + (WIDE && PAIRS); }

// Results `first` to `last` of each of `rows` inputs, `stride` numbers apart: bfloat16 or float32, the result too.
void rhoc_linear(const Plan *plan, const uint8_t *codes, const void *scale, const void *zero, const float *factor,
                 const void *x, int64_t rows, int64_t stride, int32_t pairs, const void *bias, void *out,
                 int32_t bfloat, int64_t first, int64_t last) {
    Fields fields{codes, scale, zero, factor};
    Job job{x, bias, out, rows, plan->columns, stride, plan->rows, bfloat};
    Product product{job, *plan, fields, first, last};
#if PAIRS && WIDE
    if (pairs) return decided<Pairs>(*plan, product);
#endif
#if EIGHTS
    if (is_one_input(job, *plan)) return one_input(job, *plan, fields, first, last);
#endif
    decided<Real>(*plan, product);
}

// Rows `which[first]` to `which[last]`, or `first` to `last`, one after the other as bfloat16 or float32.
void rhoc_rows(const Plan *plan, const uint8_t *codes, const void *scale, const void *zero, const float *factor,
               const int64_t *which, void *out, int32_t bfloat, int64_t first, int64_t last) {
    Fields fields{codes, scale, zero, factor};
    decided<Real>(*plan, Rows{*plan, fields, which, out, bfloat != 0, first, last});
}
}
