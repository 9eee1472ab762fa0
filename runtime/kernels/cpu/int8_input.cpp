// Inputs of integer products: rotated, scaled and rounded as their stage does it in float32, to codes in bytes.
//
// `Plan` and the arithmetic are those of the projection in training. A level l of the grid is the integer
// (l - shift) * steps. NaN has no code: a scale with one below it becomes NaN, and so does all that is
// multiplied by it.

#include "../../training_kernels/native_plan.h"
#include "../../training_kernels/native_rotation.h"
#include "../../training_kernels/native_rounding.h"
#include "../../training_kernels/native_scales.h"
#include "../../training_kernels/native_vectors.h"

struct Coding {
    int64_t stride;    // bytes from one row of codes to the next, zero beyond the numbers
    int64_t scales;    // of a row
    float shift, steps;
};

typedef int8_t Bytes __attribute__((vector_size(W)));

class Room {  // a row in float32, in the rotated domain
    void *memory;
    float *numbers;

  public:
    explicit Room(const Plan &plan) {
        memory = std::malloc(4 * (size_t)(plan.size + 2 * W) + 64);
        numbers = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    }
    ~Room() { std::free(memory); }
    Room(const Room &) = delete;
    Room &operator=(const Room &) = delete;

    template <class T> const float *row(const Plan &plan, const T *x) {
        if (plan.block > 1) {
            turn(plan, x, numbers, numbers, plan.signs, nullptr);
            if constexpr (sizeof(T) == 2)
                for (int64_t i = 0; i < plan.size; i += W) store(numbers + i, to_bfloat(load(numbers + i)));
            return numbers;
        }
        if constexpr (sizeof(T) == 4) return x;
        copied(x, numbers, plan.size);
        return numbers;
    }
};

// Codes of numbers that share a scale; whether one of them is NaN
template <int R>
static bool coded(const Grid<R> &grid, const Coding &to, const float *x, int64_t count, float step, int8_t *out) {
    const V scale = splat(step), shift = splat(to.shift), steps = splat(to.steps);
    I wrong = {};
    auto one = [&](V v) {
        V level = grid(v / scale);
        wrong |= level != level;
        return __builtin_convertvector(__builtin_convertvector((level - shift) * steps, I), Bytes);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        Bytes bytes = one(load(x + i));
        memcpy(out + i, &bytes, W);
    }
    if (i < count) {
        Bytes bytes = one(load_some(x + i, count - i));
        memcpy(out + i, &bytes, (size_t)(count - i));
    }
    return over_lanes(wrong, [](I a, I b) { return a | b; })[0] != 0;
}

struct Rows {
    const void *x;
    int8_t *codes;
    float *scales;
    int64_t first, last;
};

template <int R, class T> static void enter_rows(const Plan &plan, const Coding &to, const Rows &rows, float known) {
    const Grid<R> grid(plan);
    const int64_t size = plan.size, group = plan.sharing == OF_GROUP ? plan.group : size;
    Room room(plan);
    for (int64_t i = rows.first; i < rows.last; i++) {
        const float *x = room.row(plan, (const T *)rows.x + i * size);
        int8_t *codes = rows.codes + i * to.stride;
        for (int64_t at = 0, g = 0; at < size; at += group, g++) {
            int64_t count = at + group < size ? group : size - at;
            float scale = plan.sharing == OF_TENSOR ? known : scale_of(plan, measured(plan, x + at, count), count);
            bool wrong = coded<R>(grid, to, x + at, count, scale, codes + at);
            rows.scales[i * to.scales + g] = (wrong ? NAN : scale) / to.steps;
        }
        memset(codes + size, 0, (size_t)(to.stride - size));
    }
}

template <class T> static void enter_as(const Plan &plan, const Coding &to, const Rows &rows, float known) {
    switch (plan.rounding) {
        case NEAREST: return enter_rows<NEAREST, T>(plan, to, rows, known);
        case FLOOR: return enter_rows<FLOOR, T>(plan, to, rows, known);
        case FLOAT: return enter_rows<FLOAT, T>(plan, to, rows, known);
        default: return enter_rows<TABLE, T>(plan, to, rows, known);
    }
}

template <class T> static void measure_as(const Plan &plan, const T *x, int64_t first, int64_t last, Partial *found) {
    Room room(plan);
    for (int64_t i = first; i < last; i++) found[i] = measured(plan, room.row(plan, x + i * plan.size), plan.size);
}

extern "C" {

int64_t rhoc_int8_coding_bytes(void) { return sizeof(Coding); }

// What the scale of the whole tensor follows from, row by row.
void rhoc_int8_measure(const Plan *plan, const void *x, int64_t first, int64_t last, Partial *found) {
    if (plan->bfloat) measure_as(*plan, (const Bfloat *)x, first, last, found);
    else measure_as(*plan, (const float *)x, first, last, found);
}

// The scale of all `rows`.
float rhoc_int8_scale(const Plan *plan, const Partial *found, int64_t rows) {
    Partial all = found[0];
    for (int64_t i = 1; i < rows; i++) all = joined(all, found[i]);
    return scale_of(*plan, all, rows * plan->size);
}

// Codes and scales of rows from `first` to `last`; `known` is the scale where the whole tensor shares one.
void rhoc_int8_enter(const Plan *plan, const Coding *to, const void *x, int8_t *codes, float *scales, int64_t first,
                     int64_t last, float known) {
    const Rows some = {x, codes, scales, first, last};
    if (plan->bfloat) enter_as<Bfloat>(*plan, *to, some, known);
    else enter_as<float>(*plan, *to, some, known);
}

}
