// Scales and zero points of a row of the weight, as float32.

#pragma once

#include <memory>

#include "scalar_plan.h"

constexpr int SPARE = 64;  // numbers that may be read behind those of a row: its last chunk may be nearly empty

// The scales of a row, times the factor and the unit, and its zero points. Both may be read SPARE numbers past
// their end.
class Scales {
    const Plan &plan;
    const Fields &fields;
    int64_t found = -1;  // the row of the tables that was converted last
    std::unique_ptr<float[]> room;

  public:
    float *scale, *zero;

    Scales(const Plan &plan, const Fields &fields)
        : plan(plan), fields(fields), room(new float[2 * (plan.scale_columns + SPARE)]()) {
        scale = room.get(), zero = scale + plan.scale_columns + SPARE;
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
        int64_t place = plan.zero_bytes ? column : row * plan.scale_columns + column;
        return (float)code_at(bytes, place * plan.zero_bits, plan.zero_bits);
    }
};

#if EIGHTS
// The same for four rows that are asked for in turn, piece by piece: each is converted once
class TileScales {
    Scales each[4];

  public:
    float *scale = nullptr, *zero = nullptr;

    TileScales(const Plan &plan, const Fields &fields)
        : each{{plan, fields}, {plan, fields}, {plan, fields}, {plan, fields}} {}
    void row(int64_t n) {
        Scales &one = each[n % 4];
        one.row(n);
        scale = one.scale, zero = one.zero;
    }
};
#else
using TileScales = Scales;
#endif
