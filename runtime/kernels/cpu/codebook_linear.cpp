// Linears on matrices of vectors from codebooks.

#include "codebook_direct.h"
#include "codebook_rows.h"

static bool one_input(const BookPlan &plan, const void *const *fields, const Job &job, bool bfloat, int64_t first,
                      int64_t last) {
    bool registers = bfloat && WIDE && plan.size == 4 && plan.bits == 8 && plan.books == 1;  // faster still
    if (job.rows != 1 || registers || !Direct::takes(plan)) return false;
    Direct(job, plan, fields, bfloat).run(first, last);
    return true;
}

RHOC_EXPORTS(BookPlan, BookRows, one_input)
