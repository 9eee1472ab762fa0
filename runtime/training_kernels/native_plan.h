// What native.py says of a projection.

#pragma once

#include <cstdint>

enum Sharing { OF_ROW, OF_GROUP, OF_TENSOR, OF_NOTHING };
enum Statistic { ABSMAX, SIGNED, RMS, ABSMEAN, POWER };
enum Stored { FLOAT32, FLOAT16, BFLOAT16, E8M0 };
enum Rounding { NEAREST, FLOOR, FLOAT, TABLE, NONE };

struct Plan {
    int64_t size, block, group;      // numbers of a row, of a Hadamard block (1: none), under a scale
    int64_t chunk;                   // rows that are measured together for the tensor's scale
    const float *signs;              // of the row, before the rotation; or null
    int32_t kept, of;                // n:m; 0: all
    int32_t sharing, statistic, stored, rounding;
    int32_t keep_rotated, bfloat, power_offset, power_from_border, mantissa_bits, few;
    float multiplier, divisor, power_border, scale_least, scale_most, unit;
    float lowest, highest, shift, least, top, half_width, trust, bound;
    float levels[16], borders[16];   // filled up with the last level and infinity
};

struct Partial { double sum; float low, high; };  // of a chunk; `high` is the largest magnitude, or number
