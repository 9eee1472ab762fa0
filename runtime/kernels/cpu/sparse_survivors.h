// Survivors as numbers, from any place in a row on.

#pragma once

#include "sparse_plan.h"

template <class Number> class Survivors {
    static constexpr int64_t AFTER = 2 * CHUNK;  // numbers that may be read past the last

    const SparsePlan &plan;
    const Plan &scalar;
    const uint8_t *carry;
    Fields fields;
    std::unique_ptr<Scales> table;
    int64_t width;  // bytes of a number
    std::unique_ptr<Number[]> numbers;
    std::unique_ptr<float[]> floats;
    std::unique_ptr<uint8_t[]> bytes;
    Number level[256];
    bool line = true;  // whether levels are equidistant
    float step = 0;

    static int64_t bytes_of(const SparsePlan &plan) { return plan.stored == FLOAT32 ? 4 : 2; }

  public:
    Codes codes;
    bool bare;  // whether they are handed over without scales

    Survivors(const SparsePlan &plan, const void *const *field, int64_t most)
        : plan(plan), scalar(*(const Plan *)field[PLAN_FIELD]), carry((const uint8_t *)field[CARRY_FIELD]),
          fields{carry, field[SCALE_FIELD], field[ZERO_FIELD], (const float *)field[FACTOR_FIELD]},
          width(bytes_of(plan)), codes(scalar.bits, plan.stored == CODES ? carry + scalar.rows * scalar.row_bytes : carry),
          bare(plan.stored != CODES || (scalar.scale_columns == 1 && !scalar.zero_kind)) {
        numbers.reset(new Number[padded(most) + 2 * AFTER]());
        if (plan.stored == CODES) {
            table.reset(new Scales(scalar, fields));
            bytes.reset(new uint8_t[padded(most) + AFTER]);
            for (int i = 0; i < 256; i++) put(level + i, scalar.levels[i]);
            step = scalar.levels[1] - scalar.levels[0];
            for (int i = 1; i < 1 << scalar.bits; i++)
                line = line && scalar.levels[i] - scalar.levels[i - 1] == step;
        }
        floats.reset(new float[padded(most) + 2 * AFTER]());
    }
    const uint8_t *row(int64_t row) const { return carry + row * scalar.row_bytes; }
    int bits() const { return scalar.bits; }

    float factor(int64_t row) {
        if (!bare || !table) return 1;
        table->row(row);
        return table->scale[0];
    }
    // `count` survivors of a row of their matrix, from `first` on
    const Number *get(int64_t row, int64_t first, int64_t count) {
        if (plan.stored == CODES) return decoded(row, first, count);
        int64_t at = row * plan.survivor_columns + first;
        soon(carry + at * width, count * width);
        if (width == sizeof(Number) && plan.stored != FLOAT16 && at + count + AFTER <= plan.survivors)
            return (const Number *)carry + at;
        converted(plan.stored, nullptr, carry, at, count, floats.get());
        return rounded(count);
    }

    // The same of survivors that are stored in 16 bits, as they are
    const uint16_t *words(int64_t row, int64_t first, int64_t count) {
        int64_t at = row * plan.survivor_columns + first;
        soon(carry + at * 2, count * 2);
        if (at + count + AFTER <= plan.survivors) return (const uint16_t *)carry + at;
        return (const uint16_t *)memcpy(floats.get(), carry + at * 2, (size_t)count * 2);
    }

  private:
    const Number *rounded(int64_t count) {
        if constexpr (!WIDE && std::is_same<Number, float>::value) return floats.get();
        narrowed(floats.get(), padded(count), numbers.get());
        return numbers.get();
    }
    const Number *decoded(int64_t n, int64_t first, int64_t count) {
        codes.get(row(n), first, count, bytes.get());
        soon(row(n) + first * scalar.bits / 8, count * scalar.bits / 8);
        const uint8_t *code = bytes.get();
        float *out = floats.get();
        if (line) {
            uint8_t mask = (uint8_t)((1 << scalar.bits) - 1);
            float lowest = scalar.levels[0], each = step;
            for (int64_t i = 0; i < count; i++) out[i] = (float)(code[i] & mask) * each + lowest;
            if (bare) return rounded(count);
        } else if (bare) {
            for (int64_t i = 0; i < count; i++) numbers[i] = level[code[i]];
            return numbers.get();
        } else {
            for (int64_t i = 0; i < count; i++) out[i] = scalar.levels[code[i]];
        }
        table->row(n);
        for (int64_t i = 0; i < count;) {  // those that share a scale
            int64_t group = (first + i) / scalar.share_columns;
            int64_t end = std::min(count, (group + 1) * scalar.share_columns - first);
            float scale = table->scale[group], zero = scalar.zero_kind ? table->zero[group] : 0;
            for (; i < end; i++) out[i] = (out[i] - zero) * scale;
        }
        return rounded(count);
    }
};
