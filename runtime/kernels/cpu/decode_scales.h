// Scales and zero points of a row of the weight, as float32.

#pragma once

#include <memory>

#include "scalar_plan.h"
#include "vectors.h"

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

// The scales of a row, times the factor and the unit, and its zero points. Both may be read one vector past
// their end.
class Scales {
    const Plan &plan;
    const Fields &fields;
    int64_t found = -1;  // the row of the tables that was converted last
    std::unique_ptr<float[]> room;

  public:
    float *scale, *zero;

    Scales(const Plan &plan, const Fields &fields)
        : plan(plan), fields(fields), room(new float[2 * (plan.scale_columns + W)]()) {
        scale = room.get(), zero = scale + plan.scale_columns + W;
    }
    void row(int64_t n) {
        int64_t count = plan.scale_columns, at = n / plan.share_rows;
        if (at == found) return;
        found = at;
        converted(plan.scale_kind, plan.table, fields.scale, at * count, count, scale);
        if (fields.factor)
            for (int64_t i = 0; i < count; i++) scale[i] *= *fields.factor;
        if (plan.unit != 1)
            for (int64_t i = 0; i < count; i++) scale[i] *= plan.unit;
        if (plan.zero_kind == CODES)
            for (int64_t i = 0; i < count; i++) zero[i] = code(at, i);
        else if (plan.zero_kind)
            converted(plan.zero_kind, plan.table, fields.zero, at * count, count, zero);
    }

  private:
    float code(int64_t row, int64_t column) const {  // a packed zero point
        const uint8_t *bytes = (const uint8_t *)fields.zero + row * plan.zero_bytes;
        int64_t bit = (plan.zero_bytes ? column : row * plan.scale_columns + column) * plan.zero_bits;
        int shift = (int)(bit & 7), value = bytes[bit >> 3] >> shift;
        if (shift + plan.zero_bits > 8) value |= bytes[(bit >> 3) + 1] << (8 - shift);
        return (float)(value & ((1 << plan.zero_bits) - 1));
    }
};
