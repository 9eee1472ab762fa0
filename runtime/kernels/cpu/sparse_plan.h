// A sparse matrix, as sparse_linear.py lays it out: where its survivors are, and how they are stored.

#pragma once

#include "decode_scalar.h"
#include "streamed_codes.h"

enum PlacesKind {
    MASK,     // a bit for each number
    CHOICES,  // codes of groups, whose masks a table has
    INDICES,  // positions in groups
    RANKS,    // numbers of the choices of groups, of which there are too many for a table
    OFFSETS,  // positions in rows, one row after the other
    BLOCKS,   // a bit for each block
    LINES,    // a bit for each row
};

struct SparsePlan {
    int64_t rows, columns;
    int64_t survivors, survivor_columns;  // all; of a row of the matrix of survivors
    int64_t place_row_bytes, place_bytes; // of a row of the places (0: all rows have the same), and of all
    int32_t kind;
    int32_t place_bits;                   // of a position, or of a code
    int32_t kept, of, vector;             // neighbours that stay of how many, and together
    int32_t step;                         // numbers of a mask in the table of choices, a multiple of 8
    int32_t block_rows, block_columns;
    int32_t flat;                         // whether survivors are one row
    int32_t stored;                       // how survivors are: Kind, CODES where they are quantised
    int32_t absolute;                     // whether positions are those in the whole tensor
};

enum { CARRY_FIELD, PLACES_FIELD, STARTS_FIELD, CHOICES_FIELD, PLAN_FIELD, SCALE_FIELD, ZERO_FIELD, FACTOR_FIELD };

static inline int64_t ones(const uint8_t *bytes, int64_t count) {
    int64_t total = 0, i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        total += __builtin_popcountll(word);
    }
    for (; i < count; i++) total += __builtin_popcount(bytes[i]);
    return total;
}
