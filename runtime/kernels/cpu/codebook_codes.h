// The codes of vectors, of any width, as numbers of 16 bits.

#pragma once

#include "codebook_plan.h"
#include "streamed_codes.h"

// The codes of one of `each` codebooks of vectors
static inline const uint16_t *of_one(const uint16_t *codes, int64_t each, int64_t book, int64_t count,
                                     uint16_t *__restrict out) {
    if (each == 2) {
        for (int64_t i = 0; i < count; i++) {
            uint32_t both;
            memcpy(&both, codes + 2 * i, 4);
            out[i] = (uint16_t)(both >> (16 * book));
        }
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = codes[i * each + book];
    }
    return out;
}

class Indices {
    const BookPlan &plan;
    const uint8_t *codes, *end;
    Codes bytes;
    std::unique_ptr<uint16_t[]> room;
    std::unique_ptr<uint8_t[]> narrow;

  public:
    Indices(const BookPlan &plan, const uint8_t *codes)
        : plan(plan), codes(codes), end(codes + plan.bytes), bytes(plan.bits, end),
          room(new uint16_t[plan.vectors * plan.books + CHUNK]), narrow(new uint8_t[plan.vectors * plan.books + CHUNK]) {}

    // Codes `from` to `to` of row n
    const uint16_t *get(int64_t n, int64_t from, int64_t to) {
        const uint8_t *row = codes + n * plan.row_bytes;
        uint16_t *__restrict out = room.get();
        int64_t count = to - from, bits = plan.bits, i = 0;
        soon(row + from * bits / 8, count * bits / 8);
        if (bits == 16) {
            memcpy(out, row + 2 * from, (size_t)count * 2);
        } else if (bits <= 8) {
            uint8_t *__restrict codes = narrow.get(), mask = (uint8_t)((1 << bits) - 1);
            bytes.get(row, from, count, codes);
            for (; i < count; i++) out[i] = codes[i] & mask;
        } else {
            int64_t safe = std::min(count, ((end - row) * 8 - 32) / bits - from);  // those that are read as words
            uint32_t word, mask = (1u << bits) - 1;
            for (; i < safe; i++) {
                int64_t at = (from + i) * bits;
                memcpy(&word, row + (at >> 3), 4);
                out[i] = (uint16_t)(word >> (at & 7) & mask);
            }
            for (; i < count; i++) out[i] = (uint16_t)number_at(row, end, (from + i) * bits, (int)bits);
        }
        return out;
    }
};
