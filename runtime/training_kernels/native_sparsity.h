// n:m sparsity: a number stays when fewer than n of its m neighbours are larger, or equal and earlier.

#pragma once

#include "native_vectors.h"

template <int M, int D, int... L> static inline I neighbours(I v, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(v, v, (L / M * M + (L + D) % M)...);
}
template <int M, int D, int... L> static inline I earlier(std::integer_sequence<int, L...>) {
    return I{((L + D) % M < L % M)...};
}
template <int M, int D> static inline I beaten_by(I key) {  // equal numbers that come earlier win
    I beaten = neighbours<M, D>(key, Lanes{}) > key - earlier<M, D>(Lanes{});
    if constexpr (D + 1 < M) beaten += beaten_by<M, D + 1>(key);
    return beaten;  // minus one for each
}

static void select_scalar(const float *latent, int64_t size, int kept, int of, float *survivors, int32_t *stay) {
    for (int64_t i = 0; i < size; i++) {
        int64_t first = i - i % of;
        int beaten = 0;
        int32_t key = as_int(latent[i]) & 0x7fffffff;
        for (int64_t j = first; j < first + of; j++) {
            int32_t other = as_int(latent[j]) & 0x7fffffff;
            beaten += other > key || (other == key && j < i);
        }
        stay[i] = beaten < kept ? -1 : 0;
        survivors[i] = as_float(as_int(latent[i]) & stay[i]);
    }
}

template <int M>
static void select_groups(const float *latent, int64_t size, int kept, float *survivors, int32_t *stay) {
    int64_t i = 0;
    if constexpr (M <= W)
        for (; i + W <= size; i += W) {
            I number = bits(load(latent + i));
            I stays = beaten_by<M, 1>(number & 0x7fffffff) > I{} - kept;
            memcpy(stay + i, &stays, sizeof stays);
            store(survivors + i, floats(number & stays));
        }
    select_scalar(latent + i, size - i, kept, M, survivors + i, stay + i);
}
