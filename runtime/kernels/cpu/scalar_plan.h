// A stored matrix of scalar codes, as linear.py lays it out.

#pragma once

#include "stored_numbers.h"

struct Plan {
    int64_t rows, columns;                  // of the matrix
    int64_t row_bytes;                      // of codes
    int64_t share_rows, share_columns;      // of the matrix, that share a scale
    int64_t scale_columns;                  // of the table of scales
    int64_t zero_bytes;                     // of a row of packed zero points; 0: they are all one row
    int32_t bits, scale_kind, zero_kind, zero_bits;
    int32_t few;      // whether there are at most 16 levels
    int32_t exact;    // whether all levels are numbers of bfloat16
    float unit;       // multiplies scales
    float levels[256];  // of all codes: where they have fewer bits, repeated
    float table[256];   // what bytes of scales stand for
};

struct Fields {
    const uint8_t *codes;
    const void *scale, *zero;
    const float *factor;  // one number that multiplies scales, or null
};
