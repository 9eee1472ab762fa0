// Linears on sparse matrices.

#include "sparse_gathered.h"
#include "sparse_rows.h"

static bool few(const SparsePlan &plan, const void *const *fields, const Job &job, bool bfloat, int64_t first,
                int64_t last) {
    if (!Gathered::takes(plan)) return false;
    Gathered(plan, fields, job).run(bfloat, first, last);
    return true;
}

RHOC_EXPORTS(SparsePlan, SparseRows, few)
