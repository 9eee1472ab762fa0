// A matrix of numbers on a trellis, as trellis_linear.py lays it out.

#pragma once

#include "codebook_plan.h"
#include "streamed.h"

enum CodeKind { TABULATED, RANKED, ONE_MAD, THREE_INST };

constexpr int WINDOWS = 3;  // bytes of a window: all bits of the digits of which a state has some

struct TrellisPlan {
    int64_t rows, columns;
    int64_t row_bytes, bytes;                          // of the bits of a row, and of all
    int64_t share_rows, share_columns, scale_columns;  // as those of `Plan`
    int32_t bits, state_bits;                          // of a number, and of a state
    int32_t scale_kind, code;
    float unit;                                        // what is left to the end of rows
    uint32_t turned;                                   // bits of `ranks` that are turned
    uint64_t states[WINDOWS][WINDOWS];  // bytes of a state (low first) from those of its window (latest first), and
    uint64_t ranks[2][WINDOWS];         // of the rank of its value: matrices over GF(2) as gf2p8affineqb takes them
};

enum { BITS_FIELD, SCALES_FIELD, VALUES_FIELD, RANKS_FIELD };

// Values by rank, as words of bfloat16 with half a bit more and without a sign: lines over 256 ranks each, and the
// last 256 one by one.
struct RankTables {
    uint8_t base[2][128], slope[2][128], last[2][256];  // low bytes, high bytes
};

static inline Plan scalar_plan(const TrellisPlan &plan) {
    Plan found{};
    found.rows = plan.rows, found.columns = plan.columns;
    found.row_bytes = plan.row_bytes, found.bits = plan.bits;
    found.share_rows = plan.share_rows, found.share_columns = plan.share_columns;
    found.scale_columns = plan.scale_columns, found.scale_kind = plan.scale_kind;
    found.unit = 1;
    return found;
}
