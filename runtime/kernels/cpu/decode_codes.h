// Codes of 1 to 8 bits from a row's bit stream to their levels, CHUNK at a time.
//
// With byte permutations every width is the same work: eight codes are moved into each word of 64 bits, fields
// of 8 bits are cut out of it (what is above a code is not looked at, as levels are repeated), and levels are
// looked up as bytes of bfloat16, or as float32 where there are at most 16 of them.

#pragma once

#include "scalar_plan.h"
#include "strip.h"

// Where rows of codes are: one may be read CHUNK bytes past its end.
class CodeRows {
    const Plan &plan;
    const uint8_t *codes;
    std::unique_ptr<uint8_t[]> room;
    int64_t copied = -1;

  public:
    CodeRows(const Plan &plan, const Fields &fields) : plan(plan), codes(fields.codes) {}
    const uint8_t *get(int64_t n) {
        const uint8_t *row = codes + n * plan.row_bytes;
        if ((plan.rows - n - 1) * plan.row_bytes >= CHUNK) return row;
        if (!room) room.reset(new uint8_t[plan.row_bytes + CHUNK]());
        if (copied != n) memcpy(room.get(), row, (size_t)plan.row_bytes);
        copied = n;
        return room.get();
    }
};

// One code after the other: any levels, on any processor
struct PlainCodes {
    using Number = float;
    const float *levels;
    int bits;
    int64_t whole, tail;  // bytes of a chunk, and of the last

    explicit PlainCodes(const Plan &plan) : levels(plan.levels), bits(plan.bits) {
        whole = CHUNK / 8 * bits;
        tail = plan.row_bytes - plan.columns / CHUNK * whole;
    }

    template <int B> inline void read(const uint8_t *bytes, float *out) const {
        for (int j = 0; j < CHUNK; j += 8) {  // eight codes in B bytes
            uint64_t word = 0;
            memcpy(&word, bytes + j / 8 * B, B);
            for (int i = 0; i < 8; i++) out[j + i] = levels[word >> (i * B) & ((1 << B) - 1)];
        }
    }
    inline void get(const uint8_t *bytes, bool full, V *out) const {
        uint8_t room[CHUNK] = {};
        ahead(bytes);
        if (!full) bytes = (const uint8_t *)memcpy(room, bytes, (size_t)tail);
        alignas(64) float values[CHUNK];
        switch (bits) {
            case 1: read<1>(bytes, values); break;
            case 2: read<2>(bytes, values); break;
            case 3: read<3>(bytes, values); break;
            case 4: read<4>(bytes, values); break;
            case 5: read<5>(bytes, values); break;
            case 6: read<6>(bytes, values); break;
            case 7: read<7>(bytes, values); break;
            default: read<8>(bytes, values);
        }
        for (int i = 0; i < CHUNK / W; i++) out[i] = load(values + i * W);
    }
};

#if WIDE
// A byte for each code of a chunk. `paired`: in the order from which unpacking makes words in order.
struct Bytes {
    __m512i spread, shifts;
    __mmask64 tail;

    Bytes(const Plan &plan, bool paired) {
        uint8_t from[64], shift[64];
        for (int i = 0; i < 64; i++) {
            int word = i / 8, eight = paired ? word / 2 + word % 2 * 4 : word;
            from[i] = (uint8_t)(eight * plan.bits + std::min(i % 8, plan.bits - 1));
            shift[i] = (uint8_t)(i % 8 * plan.bits);
        }
        spread = _mm512_loadu_si512(from), shifts = _mm512_loadu_si512(shift);
        int64_t rest = plan.row_bytes - plan.columns / CHUNK * (CHUNK / 8) * plan.bits;
        tail = rest ? ~0ull >> (64 - rest) : 0;
    }
    inline __m512i get(const uint8_t *bytes, bool full) const {
        ahead(bytes);
        // Masked loads start no prefetching: with them everywhere a weight arrives four times as slowly.
        __m512i raw = full ? _mm512_loadu_si512(bytes) : _mm512_maskz_loadu_epi8(tail, bytes);
        return _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(spread, raw));
    }
};

// At most 16 levels
struct FewCodes {
    using Number = float;
    Bytes bytes;
    __m512 levels;

    explicit FewCodes(const Plan &plan) : bytes(plan, false), levels(_mm512_loadu_ps(plan.levels)) {}
    inline void get(const uint8_t *from, bool full, V *out) const {
        __m512i codes = bytes.get(from, full);
        out[0] = level(_mm512_castsi512_si128(codes)), out[1] = level(_mm512_extracti32x4_epi32(codes, 1));
        out[2] = level(_mm512_extracti32x4_epi32(codes, 2)), out[3] = level(_mm512_extracti32x4_epi32(codes, 3));
    }
    inline V level(__m128i codes) const { return (V)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), levels); }
};

// Levels that are numbers of bfloat16 or are rounded to it, as words: up to 64 of them, or up to 256
template <bool MANY> struct Words {
    using Number = Bfloat;
    static constexpr int TABLES = MANY ? 4 : 1;
    Bytes bytes;
    __m512i low[TABLES], high[TABLES];

    explicit Words(const Plan &plan) : bytes(plan, true) {
        for (int t = 0; t < TABLES; t++) {
            uint8_t lower[64], upper[64];
            for (int i = 0; i < 64; i++) {
                Bfloat word;
                put(&word, plan.levels[t * 64 + i]);
                lower[i] = (uint8_t)word, upper[i] = (uint8_t)(word >> 8);
            }
            low[t] = _mm512_loadu_si512(lower), high[t] = _mm512_loadu_si512(upper);
        }
    }
    inline void get(const uint8_t *from, bool full, __m512i *out) const {
        __m512i codes = bytes.get(from, full);
        __m512i lower = look_up(codes, low), upper = look_up(codes, high);
        out[0] = _mm512_unpacklo_epi8(lower, upper), out[1] = _mm512_unpackhi_epi8(lower, upper);
    }
    static inline __m512i look_up(__m512i codes, const __m512i *table) {
        if constexpr (!MANY) return _mm512_permutexvar_epi8(codes, table[0]);
        __m512i first = _mm512_permutex2var_epi8(table[0], codes, table[TABLES - 3]);
        __m512i second = _mm512_permutex2var_epi8(table[TABLES - 2], codes, table[TABLES - 1]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), first, second);
    }
    inline void get(const uint8_t *from, bool full, V *out) const {
        __m512i words[2];
        get(from, full, words);
        for (int i = 0; i < 2; i++) {
            out[2 * i] = wide(_mm512_castsi512_si256(words[i]));
            out[2 * i + 1] = wide(_mm512_extracti64x4_epi64(words[i], 1));
        }
    }
    static inline V wide(__m256i words) { return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16); }
};
#endif
