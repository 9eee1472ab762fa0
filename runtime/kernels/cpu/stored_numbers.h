// Scales and zero points as they are stored, to numbers.

#pragma once

#include "vectors.h"

enum Kind { NONE, FLOAT32, FLOAT16, BFLOAT16, E8M0, E4M3, TABLE, CODES };  // how scales or zero points are stored

static inline float half_number(uint16_t h) {  // float16
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    return as_float(as_int(as_float(rest << 13) * 0x1p112f) | sign);
}

static inline void converted(int kind, const float *table, const void *from, int64_t first, int64_t count, float *out) {
    const uint8_t *bytes = (const uint8_t *)from + first;
    const uint16_t *words = (const uint16_t *)from + first;
    if (kind == FLOAT32) {
        memcpy(out, (const float *)from + first, (size_t)count * 4);
    } else if (kind == BFLOAT16) {
        for (int64_t i = 0; i < count; i++) out[i] = as_float((uint32_t)words[i] << 16);
    } else if (kind == FLOAT16) {
        for (int64_t i = 0; i < count; i++) out[i] = half_number(words[i]);
    } else if (kind == E8M0) {
        for (int64_t i = 0; i < count; i++)
            out[i] = as_float(bytes[i] == 255 ? 0x7fc00000u : bytes[i] ? (uint32_t)bytes[i] << 23 : 0x00400000u);
    } else if (kind == E4M3) {
        for (int64_t i = 0; i < count; i++) {
            uint32_t byte = bytes[i], sign = (byte & 0x80) << 24, rest = byte & 0x7f;
            float size = as_float(rest << 20) * 0x1p120f;
            out[i] = as_float((rest == 0x7f ? 0x7fc00000u : as_int(size)) | sign);
        }
    } else if (kind == TABLE) {
        for (int64_t i = 0; i < count; i++) out[i] = table[bytes[i]];
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = 1;
    }
}

// A code of `bits` bits, 8 at most, at bit `at`
static inline int32_t code_at(const uint8_t *bytes, int64_t at, int32_t bits) {
    const int32_t shift = at & 7;
    int32_t value = bytes[at >> 3] >> shift;
    if (shift + bits > 8) value |= bytes[(at >> 3) + 1] << (8 - shift);
    return value & ((1 << bits) - 1);
}
