// E8P (QuIP#, 2402.04396, section 4.2): a code is 8 bits of magnitudes, 7 signs and the sign of a move by 1/4. Here
// numbers are integers, four times as large.

#pragma once

#include "codebook_plan.h"

class Points {
    int8_t magnitude[256][8];  // with the last sign as it is when the others are even

    static int digits(int entry, int8_t *out) {  // of a number in base three as magnitudes; the squared norm, in 1/4
        int norm = 0;
        for (int i = 7; i >= 0; i--, entry /= 3) {
            int odd = entry % 3 * 2 + 1;
            out[i] = (int8_t)(2 * odd), norm += odd * odd;
        }
        return norm;
    }

  public:
    Points() {  // in the order of runtime/codebooks/e8p.py: all of squared norm 10 at most, then 29 of 12
        int count = 0, longer[64] = {}, found = 0;
        int8_t row[8];
        for (int entry = 0; entry < 6561; entry++) {
            int norm = digits(entry, row);
            bool flat = *std::max_element(row, row + 8) < 10;
            if (norm <= 40 && count < 256) memcpy(magnitude[count++], row, 8);
            if (norm == 48 && flat && found < 64) longer[found++] = entry;
        }
        for (int i = 0; count < 256; i++) digits(longer[i * found / 29], magnitude[count++]);
        for (int entry = 0; entry < 256; entry++) {
            int total = 0;  // of numbers twice as large as theirs
            for (int i = 0; i < 8; i++) total += magnitude[entry][i] / 2;
            if (total / 2 % 2) magnitude[entry][7] = (int8_t)-magnitude[entry][7];
        }
    }

#if WIDE
    // `count` vectors: numbers that may be written to the next multiple of 8 * CHUNK
    void get(const uint16_t *code, int64_t count, int8_t *out) const {
        constexpr int64_t BLOCK = CHUNK;  // codes
        uint8_t low[BLOCK] = {}, signs[BLOCK], moves[BLOCK];
        for (int64_t i = 0; i < count; i += BLOCK, out += BLOCK * 8) {
            int64_t some = std::min(BLOCK, count - i);
            for (int64_t j = 0; j < some; j++) memcpy(out + j * 8, magnitude[code[i + j] >> 8], 8);
            for (int64_t j = 0; j < some; j++) low[j] = (uint8_t)code[i + j];
            parted(low, signs, moves);
            for (int64_t j = 0; j < some; j += 8) turned(signs + j, moves + j, out + j * 8);
        }
    }
#endif
    // As float32, without the move: magnitudes of the upper byte of a code, and signs, as bits, of the lower one
    void tables(float (*sizes)[8], uint32_t (*signs)[8]) const {
        for (int byte = 0; byte < 256; byte++)
            for (int i = 0; i < 8; i++) {
                int turned = i < 7 ? byte >> (i + 1) & 1 : __builtin_parity(byte >> 1);
                sizes[byte][i] = magnitude[byte][i], signs[byte][i] = (uint32_t)turned << 31;
            }
    }

#if WIDE
  private:
    // The signs of CHUNK vectors, the last so that there is an even number, and all bits where they move down
    static inline void parted(const uint8_t *low, uint8_t *signs, uint8_t *moves) {
#if defined(__GFNI__)
        __m512i byte = _mm512_loadu_si512(low);  // rows of bits from the highest on
        __m512i even = _mm512_set1_epi64(0x02040810204080fe), last = _mm512_set1_epi64(0x0101010101010101);
        _mm512_storeu_si512(signs, _mm512_gf2p8affine_epi64_epi8(byte, even, 0));
        _mm512_storeu_si512(moves, _mm512_gf2p8affine_epi64_epi8(byte, last, 0));
#else
        for (int64_t j = 0; j < CHUNK; j++) {
            uint8_t parity = low[j] & 0xfe;
            parity ^= (uint8_t)(parity >> 4), parity ^= (uint8_t)(parity >> 2), parity ^= (uint8_t)(parity >> 1);
            signs[j] = (uint8_t)(low[j] >> 1 | parity << 7);
            moves[j] = (uint8_t)-(low[j] & 1);
        }
#endif
    }
    // Eight vectors with their signs, moved
    static inline void turned(const uint8_t *signs, const uint8_t *moves, int8_t *out) {
        __mmask64 negative, down;
        memcpy(&negative, signs, 8), memcpy(&down, moves, 8);
        __m512i size = _mm512_loadu_si512(out), move = _mm512_set1_epi8(1);
        move = _mm512_mask_sub_epi8(move, down, _mm512_setzero_si512(), move);
        size = _mm512_mask_sub_epi8(size, negative, _mm512_setzero_si512(), size);
        _mm512_storeu_si512(out, _mm512_add_epi8(size, move));
    }
#endif
};

// Vectors as float32, for processors on which that is sooner than bytes
class FloatPoints {
    typedef float T __attribute__((vector_size(32)));
    typedef uint32_t Sign __attribute__((vector_size(32)));

    alignas(64) float sizes[256][8];
    uint32_t signs[256][8];
    float move[2] = {1, -1};

  public:
    FloatPoints() { Points().tables(sizes, signs); }

    // Sums over `books` codes that follow each other, of vectors times factors
    void get(const uint16_t *code, int64_t books, const float *factors, int64_t count, float *out) const {
        if (books == 1) return sums<1>(code, 1, factors, count, out);
        if (books == 2) return sums<2>(code, 2, factors, count, out);
        sums<0>(code, books, factors, count, out);
    }

  private:
    template <int BOOKS>
    void sums(const uint16_t *code, int64_t books, const float *factors, int64_t count, float *__restrict out) const {
        for (int64_t i = 0; i < count; i++, code += books, out += 8) {
            T total = vector(code[0]) * factors[0];
            for (int64_t b = 1; b < (BOOKS ? BOOKS : books); b++) total += vector(code[b]) * factors[b];
            memcpy(out, &total, sizeof total);
        }
    }
    inline T vector(uint16_t code) const {
        Sign size, sign;
        memcpy(&size, sizes[code >> 8], sizeof size), memcpy(&sign, signs[code & 255], sizeof sign);
        return (T)(size ^ sign) + move[code & 1];
    }
};
