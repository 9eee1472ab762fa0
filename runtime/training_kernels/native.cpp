// A projection in training and its backward pass: one pass over memory, row by row, everything else in cache.
//
// `Plan` is what native.py lays out from plan.py. Rows are independent, so threads may take any of them; only a
// scale of the whole tensor is measured before, in chunks of rows that do not depend on the number of threads.
// Arithmetic is that of the stages in float32, operation by operation; -ffp-contract=off keeps it so. Magnitudes
// are compared as integers, which have the order of non-negative floats and put NaN above all.

#include "native_plan.h"
#include "native_rotation.h"
#include "native_rounding.h"
#include "native_scales.h"
#include "native_sparsity.h"
#include "native_vectors.h"

struct Room {  // what a thread works in
    float *latent, *survivors, *scales;
    int32_t *stay;
    void *memory;

    explicit Room(const Plan &plan) {
        size_t row = ((size_t)plan.size + W + 15) / 16 * 16;
        memory = std::malloc(4 * (4 * row + 64));
        latent = (float *)(((uintptr_t)memory + 63) / 64 * 64);
        survivors = latent + row, stay = (int32_t *)(survivors + row), scales = (float *)stay + row;
    }
    ~Room() { std::free(memory); }
    Room(const Room &) = delete;
    Room &operator=(const Room &) = delete;
};

template <class T> static const float *latent_row(const Plan &plan, const T *x, Room &room) {
    if (plan.block > 1) {
        turn(plan, x, room.latent, room.latent, plan.signs, nullptr);
        if constexpr (sizeof(T) == 2)
            for (int64_t i = 0; i < plan.size; i += W) store(room.latent + i, to_bfloat(load(room.latent + i)));
        return room.latent;
    }
    if constexpr (sizeof(T) == 4) return x;
    copied(x, room.latent, plan.size);
    return room.latent;
}

static const float *survivors_row(const Plan &plan, const float *latent, Room &room) {
    if (!plan.of) return latent;
    (plan.of == 4 ? select_groups<4> : select_groups<8>)(latent, plan.size, plan.kept, room.survivors, room.stay);
    return room.survivors;
}

template <int R, bool MASK, bool SPARSE>
static void round_row(const Plan &plan, const Row &row, Room &room, float tensor_scale) {
    const int64_t size = plan.size, group = plan.sharing == OF_GROUP ? plan.group : size;
    constexpr bool BEFORE = SPARSE || W < 16;  // scales first: calls between groups would empty the few registers
    const bool known = plan.sharing == OF_TENSOR || plan.sharing == OF_NOTHING;
    auto scale_at = [&](int64_t at, int64_t end) {
        if (known) return tensor_scale;
        return scale_of(plan, measured(plan, row.survivors + at, end - at), survivors_of(plan, end - at));
    };
    auto end_of = [&](int64_t at) { return at + group < size ? at + group : size; };
    float widest = 0;  // of scales; zeroed numbers go by it
    for (int64_t at = 0, g = 0; BEFORE && at < size; at += group, g++) {
        room.scales[g] = scale_at(at, end_of(at));
        float width = std::fabs(room.scales[g]);
        widest = width > widest || width != width ? width : widest;
    }
    const Widths zeroed = widths_of(plan, widest);
    const Rounder<R, MASK, SPARSE> round(plan, row, room.stay);
    for (int64_t at = 0, g = 0; at < size; at += group, g++) {
        float scale = BEFORE ? room.scales[g] : scale_at(at, end_of(at));
        round(at, end_of(at), scale, widths_of(plan, scale), zeroed);
    }
}

typedef void (*RoundRow)(const Plan &, const Row &, Room &, float);
template <bool MASK, bool SPARSE> static RoundRow rounding_of(const Plan &plan) {
    switch (plan.rounding) {
        case NEAREST: return round_row<NEAREST, MASK, SPARSE>;
        case FLOOR: return round_row<FLOOR, MASK, SPARSE>;
        case FLOAT: return round_row<FLOAT, MASK, SPARSE>;
        case TABLE: return round_row<TABLE, MASK, SPARSE>;
        default: return round_row<NONE, MASK, SPARSE>;
    }
}

template <class T>
static void project_rows(const Plan &plan, const T *x, T *out, uint8_t *mask, int64_t first, int64_t last,
                         float scale) {
    RoundRow round = plan.of ? mask ? rounding_of<true, true>(plan) : rounding_of<false, true>(plan)
                             : mask ? rounding_of<true, false>(plan) : rounding_of<false, false>(plan);
    int64_t size = plan.size, bytes = (size + 7) / 8;
    bool turned_back = plan.block > 1 && !plan.keep_rotated, direct = sizeof(T) == 4 && !turned_back;
    Room room(plan);
    for (int64_t i = first; i < last; i++) {
        Row row;
        row.latent = latent_row(plan, x + i * size, room);
        row.survivors = survivors_row(plan, row.latent, room);
        row.out = direct ? (float *)(out + i * size) : room.latent;
        row.mask = mask ? mask + i * bytes : nullptr;
        row.ahead = (const char *)(x + (i + 1 < last ? i + 1 : i) * size), row.ahead_bytes = sizeof(T);
        if (mask) memset(row.mask, 0, (size_t)bytes);
        round(plan, row, room, scale);
        if (turned_back) turn(plan, room.latent, out + i * size, room.latent, nullptr, plan.signs);
        else if (!direct) copied(room.latent, out + i * size, size);
    }
}

template <class T> static void multiplied(const T *grad, T *out, const uint8_t *mask, int64_t size) {
    int64_t i = 0;
    for (; i + W <= size; i += W) store(out + i, load(grad + i) * ones_where(get_bits(mask, i, W)));
    if (i < size) {
        int64_t rest = size - i;
        store_some(out + i, load_some(grad + i, rest) * ones_where(get_bits(mask, i, rest)), rest);
    }
}

template <class T>
static void backward_rows(const Plan &plan, const T *grad, T *out, const uint8_t *mask, int64_t first, int64_t last) {
    int64_t size = plan.size, bytes = (size + 7) / 8;
    Room room(plan);
    for (int64_t row = first; row < last; row++) {
        const T *in = grad + row * size;
        const uint8_t *passes = mask ? mask + row * bytes : nullptr;
        if (plan.block == 1) {
            multiplied(in, out + row * size, passes, size);
            continue;
        }
        if (plan.keep_rotated && !mask) {
            turn(plan, in, out + row * size, room.latent, nullptr, plan.signs);
            continue;
        }
        if (plan.keep_rotated) copied(in, room.latent, size);
        else turn(plan, in, room.latent, room.latent, plan.signs, nullptr);
        multiplied(room.latent, room.latent, passes, size);
        turn(plan, room.latent, out + row * size, room.latent, nullptr, plan.signs);
    }
}

template <class T>
static void measure_chunks(const Plan &plan, const T *x, int64_t rows, int64_t first, int64_t last, Partial *partials) {
    Room room(plan);
    for (int64_t chunk = first; chunk < last; chunk++) {
        int64_t row = chunk * plan.chunk, end = row + plan.chunk < rows ? row + plan.chunk : rows;
        for (int64_t start = row; row < end; row++) {
            const float *latent = latent_row(plan, x + row * plan.size, room);
            Partial found = measured(plan, survivors_row(plan, latent, room), plan.size);
            partials[chunk] = row == start ? found : joined(partials[chunk], found);
        }
    }
}

extern "C" {

int64_t rhoc_plan_bytes(void) { return sizeof(Plan); }

// Partial results of the tensor's scale, for chunks from `first` to `last`.
void rhoc_measure(const Plan *plan, const void *x, int64_t rows, int64_t first, int64_t last, Partial *partials) {
    if (plan->bfloat) measure_chunks(*plan, (const Bfloat *)x, rows, first, last, partials);
    else measure_chunks(*plan, (const float *)x, rows, first, last, partials);
}

// Rows from `first` to `last`, of a tensor of `rows`. `mask` may be null.
void rhoc_project(const Plan *plan, const void *x, void *out, uint8_t *mask, int64_t rows, int64_t first, int64_t last,
                  const Partial *partials, int64_t chunks) {
    if (first == last) return;
    float scale = 1.0f;
    if (plan->sharing == OF_TENSOR) {
        Partial all = partials[0];
        for (int64_t i = 1; i < chunks; i++) all = joined(all, partials[i]);
        scale = scale_of(*plan, all, survivors_of(*plan, rows * plan->size));
    }
    if (plan->bfloat) project_rows(*plan, (const Bfloat *)x, (Bfloat *)out, mask, first, last, scale);
    else project_rows(*plan, (const float *)x, (float *)out, mask, first, last, scale);
}

// dL/dx of rows from `first` to `last`. `mask` may be null where all passes and the rotation is to be undone.
void rhoc_backward(const Plan *plan, const void *grad, void *out, const uint8_t *mask, int64_t first, int64_t last) {
    if (plan->bfloat) backward_rows(*plan, (const Bfloat *)grad, (Bfloat *)out, mask, first, last);
    else backward_rows(*plan, (const float *)grad, (float *)out, mask, first, last);
}

}
