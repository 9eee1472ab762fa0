// Linears on sparse matrices.

#include "sparse_rows.h"

static bool nothing(const SparsePlan &, const void *const *, const Job &, bool, int64_t, int64_t) { return false; }

RHOC_EXPORTS(SparsePlan, SparseRows, nothing)
