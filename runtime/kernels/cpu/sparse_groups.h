// Positions of survivors in n:m groups, from positions or from the numbers of choices.

#pragma once

#include "sparse_plan.h"

class GroupPlaces {
    static constexpr int64_t TREE = 256;  // most that a group has
    static constexpr int64_t LANES = 16;  // groups whose choices are told apart together

    const SparsePlan &plan;
    const uint8_t *places;
    const int32_t *counts;  // of RANKS: C(position, order + 1) as [kept][TREE], each row as `searched` goes through it
    int levels = 0;         // 2 to the power of these is no less than a group has units

  public:
    const int64_t kept, units;  // of a group, neighbours that stay together counted once

    GroupPlaces(const SparsePlan &plan, const void *const *fields)
        : plan(plan), places((const uint8_t *)fields[PLACES_FIELD]), counts((const int32_t *)fields[CHOICES_FIELD]),
          kept(plan.kept / plan.vector), units(plan.of / plan.vector) {
        while (1 << levels < units) levels++;
    }

    // Of `count` groups of row n, from `first` on: the units that stay, `kept` of each
    void get(int64_t n, int64_t first, int64_t count, uint32_t *out) const {
        const uint8_t *row = places + n * plan.place_row_bytes, *end = places + plan.place_bytes;
        int64_t each = plan.kind == RANKS ? 1 : kept, bits = plan.place_bits;
        soon(row + first * each * bits / 8, count * each * bits / 8);
        if (plan.kind == RANKS) return ranked(row, end, first, count, out);
        for (int64_t i = 0; i < count * kept; i++) out[i] = number_at(row, end, (first * kept + i) * bits, (int)bits);
    }

  private:
    // The combinatorial number system: the last position is the largest c with C(c, kept) no more than the number,
    // the one before it that of what is left over, and so on
    void ranked(const uint8_t *row, const uint8_t *end, int64_t first, int64_t count, uint32_t *out) const {
        for (int64_t group = 0; group < count; group += LANES) {
            int32_t number[LANES], low[LANES];
            int64_t some = std::min(LANES, count - group);
            for (int64_t i = 0; i < LANES; i++) {
                int64_t at = first + group + std::min(i, some - 1);
                number[i] = (int32_t)number_at(row, end, at * plan.place_bits, plan.place_bits);
            }
            for (int64_t order = kept - 1; order >= 0; order--) {
                searched(counts + order * TREE, number, low);
                for (int64_t i = 0; i < some; i++) out[(group + i) * kept + order] = (uint32_t)low[i];
            }
        }
    }
    // The last position whose count is no more than each number, and the number without that count. The counts of
    // positions from 1 on are a tree, whose node i has smaller ones below 2 i and larger ones below 2 i + 1.
    void searched(const int32_t *count, int32_t *number, int32_t *low) const {
#if WIDE
        __m512i tree[8], left = _mm512_loadu_si512(number), node = _mm512_set1_epi32(1), best = _mm512_setzero_si512();
        for (int i = 0; i < 8; i++) tree[i] = _mm512_loadu_si512(count + 16 * i);
        for (int level = 0; level < levels; level++) {
            __m512i value;
            if (level < 4)
                value = _mm512_permutexvar_epi32(node, tree[0]);
            else if (level == 4)
                value = _mm512_permutexvar_epi32(node, tree[1]);
            else if (level == 5)
                value = _mm512_permutex2var_epi32(tree[2], node, tree[3]);
            else if (level == 6)
                value = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(node, _mm512_set1_epi32(32)),
                                                _mm512_permutex2var_epi32(tree[4], node, tree[5]),
                                                _mm512_permutex2var_epi32(tree[6], node, tree[7]));
            else
                value = _mm512_i32gather_epi32(node, count, 4);
            __mmask16 fits = _mm512_cmple_epi32_mask(value, left);
            best = _mm512_mask_mov_epi32(best, fits, value), node = _mm512_add_epi32(node, node);
            node = _mm512_mask_add_epi32(node, fits, node, _mm512_set1_epi32(1));
        }
        node = _mm512_sub_epi32(node, _mm512_set1_epi32(1 << levels));
        _mm512_storeu_si512(low, _mm512_min_epi32(node, _mm512_set1_epi32((int)units - 1)));  // if damaged
        _mm512_storeu_si512(number, _mm512_sub_epi32(left, best));
#else
        for (int64_t i = 0; i < LANES; i++) {
            int32_t node = 1, best = 0;
            for (int level = 0; level < levels; level++) {
                bool fits = count[node] <= number[i];
                best = fits ? count[node] : best, node = 2 * node + fits;
            }
            low[i] = std::min(node - (1 << levels), (int32_t)units - 1);  // if damaged
            number[i] -= best;
        }
#endif
    }
};
