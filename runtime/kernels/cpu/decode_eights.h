// Codes of 1 to 8 bits to their levels with AVX2.
//
// Eight codes of b bits are b bytes. The two in which a code lies are moved to its lane; what follows depends on
// the levels: a grid is a conversion and a fused product, up to eight levels are looked up across a register,
// 16 within halves of one, byte by byte, floats are moved to where float16 has its fields, and others are
// gathered from memory. Each way gives the very numbers of the table, or says that it does not.

#pragma once

#include "decode_codes.h"

#if EIGHTS
constexpr int UNIT = 32;  // codes that are decoded at once: four vectors, since there are 16 registers

// Where each of eight codes lies, of those that are repeated in both halves of a vector
struct Lanes {
    __m256i bytes, shifts;

    explicit Lanes(int bits) {
        int32_t from[8], shift[8];
        for (int i = 0; i < 8; i++) {
            int at = i * bits / 8;
            from[i] = (int32_t)(0x80800000u | (uint32_t)(at + 1) << 8 | (uint32_t)at), shift[i] = i * bits % 8;
        }
        bytes = _mm256_loadu_si256((const __m256i *)from), shifts = _mm256_loadu_si256((const __m256i *)shift);
    }
    inline __m256i get(const uint8_t *from) const {
        int64_t eight;
        memcpy(&eight, from, 8);
        return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), bytes);
    }
};

// Levels at equal distances. A code is not moved to the end of its lane: the step is smaller instead.
struct Grid {
    Lanes lanes;
    __m256i mask;
    V step, base;

    explicit Grid(const Plan &plan) : lanes(plan.bits), base(splat(plan.levels[0])) {
        mask = _mm256_sllv_epi32(_mm256_set1_epi32((1 << plan.bits) - 1), lanes.shifts);
        for (int i = 0; i < W; i++) step[i] = (plan.levels[1] - plan.levels[0]) / (float)(1 << i * plan.bits % 8);
    }
    static bool fits(const Plan &plan) {
        float base = plan.levels[0], step = (plan.levels[1] - base) / 128;
        for (int code = 0; code < 1 << plan.bits; code++)
            if (as_int(std::fma((float)(code * 128), step, base)) != as_int(plan.levels[code])) return false;
        return true;
    }
    inline V get(const uint8_t *from) const {
        return fused((V)_mm256_cvtepi32_ps(_mm256_and_si256(lanes.get(from), mask)), step, base);
    }
};

// Up to eight levels: what is above the three bits of a code is not looked at, as levels are repeated
struct Eight {
    Lanes lanes;
    __m256 levels;

    explicit Eight(const Plan &plan) : lanes(plan.bits), levels(_mm256_loadu_ps(plan.levels)) {}
    static bool fits(const Plan &plan) { return plan.bits <= 3; }
    inline V get(const uint8_t *from) const {
        return (V)_mm256_permutevar8x32_ps(levels, _mm256_srlv_epi32(lanes.get(from), lanes.shifts));
    }
};

// Any levels
struct Gathered {
    Lanes lanes;
    __m256i mask;
    const float *levels;

    explicit Gathered(const Plan &plan)
        : lanes(plan.bits), mask(_mm256_set1_epi32((1 << plan.bits) - 1)), levels(plan.levels) {}
    inline V get(const uint8_t *from) const {
        __m256i codes = _mm256_and_si256(_mm256_srlv_epi32(lanes.get(from), lanes.shifts), mask);
        return (V)_mm256_i32gather_ps(levels, codes, 4);
    }
};

// 16 levels, of whose four bytes each is looked up for 32 codes at once
struct Sixteen {
    __m256i spread, level[4];

    explicit Sixteen(const Plan &plan) {
        uint8_t from[32], bytes[4][16];
        for (int i = 0; i < 32; i++)  // codes in the order from which unpacking twice makes floats in order
            from[i] = (uint8_t)((i % 16 / 4 * 8 + i / 16 * 4 + i % 4) / 2);
        spread = _mm256_loadu_si256((const __m256i *)from);
        for (int b = 0; b < 4; b++) {
            for (int code = 0; code < 16; code++) bytes[b][code] = (uint8_t)(as_int(plan.levels[code]) >> 8 * b);
            level[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[b]));
        }
    }
    static bool fits(const Plan &plan) { return plan.bits == 4; }
    inline void unit(const uint8_t *from, int64_t, V *out) const {
        __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
        twice = _mm256_shuffle_epi8(twice, spread);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(twice, 4), _mm256_set1_epi16(0x0f00));
        __m256i codes = _mm256_or_si256(_mm256_and_si256(twice, _mm256_set1_epi16(0x000f)), odd);
        __m256i byte[4];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) byte[b] = _mm256_shuffle_epi8(level[b], codes);
        floats(_mm256_unpacklo_epi8(byte[0], byte[1]), _mm256_unpacklo_epi8(byte[2], byte[3]), out);
        floats(_mm256_unpackhi_epi8(byte[0], byte[1]), _mm256_unpackhi_epi8(byte[2], byte[3]), out + 2);
    }
    static inline void floats(__m256i low, __m256i high, V *out) {
        out[0] = (V)_mm256_unpacklo_epi16(low, high), out[1] = (V)_mm256_unpackhi_epi16(low, high);
    }
};

// Sign, exponent of up to five bits, mantissa: in the fields of float16, and times a power of two. One magnitude
// may stand for what is no number. Codes of eight bits are cut out with fewer instructions: with up to FOUR bits of
// exponent, and that magnitude the largest, or with FIVE, and none.
enum FloatCodes { ANY_BITS, FOUR, FIVE };
template <FloatCodes KIND> class Floats {
    static constexpr bool BYTES = KIND != ANY_BITS;
    __m256i spread, shifts, even, odd, fields, nan;
    __m128i move;  // from the top of a word
    V factor;
    bool marked;  // whether a magnitude is no number

    struct Form {
        int exponent = 0;  // its bits; 0: the levels are other numbers
        int nan = -1;      // a magnitude as float16, or one that there is not
        float factor = 0;
    };
    // Magnitudes of `size` bits as float16
    static int half(int magnitude, int size, int exponent) { return magnitude << (15 - size) >> (5 - exponent); }
    static Form form_of(const Plan &plan) {
        int size = plan.bits - 1;
        for (int exponent = 1; exponent <= std::min(size, 5); exponent++) {
            int first = 1 << (size - exponent), nan = -1;
            float factor = plan.levels[first] / _cvtsh_ss((uint16_t)half(first, size, exponent));
            auto magnitude = [&](int code) { return half(code & ((1 << size) - 1), size, exponent); };
            auto number = [&](int code) {
                return _cvtsh_ss((uint16_t)(code >> size << 15 | magnitude(code))) * factor;
            };
            for (int code = 0; code < 2 << size; code++)
                if (std::isnan(plan.levels[code]) && !std::isnan(number(code))) nan = magnitude(code);
            bool same = true;
            for (int code = 0; same && code < 2 << size; code++)
                same = magnitude(code) == nan || std::isnan(number(code))
                           ? std::isnan(plan.levels[code])
                           : as_int(plan.levels[code]) == as_int(number(code));
            if (same) return {exponent, nan, factor};
        }
        return {};
    }

  public:
    explicit Floats(const Plan &plan) {
        Form form = form_of(plan);
        int size = plan.bits - 1;
        uint8_t from[32];
        uint16_t shift[16];
        marked = form.nan >= 0;
        for (int i = 0; i < 16; i++) {
            int at = i * plan.bits;
            from[2 * i] = (uint8_t)(at / 8), from[2 * i + 1] = (uint8_t)std::min(at / 8 + 1, 15);
            shift[i] = (uint16_t)(1 << (BYTES ? 3 + form.exponent : 16 - plan.bits - at % 8));
        }
        spread = _mm256_loadu_si256((const __m256i *)from), shifts = _mm256_loadu_si256((const __m256i *)shift);
        even = _mm256_set1_epi16((int16_t)(shift[0] & 0xff)), odd = _mm256_slli_epi16(even, 8);
        fields = _mm256_set1_epi16((int16_t)(0x8000 | half((1 << size) - 1, size, form.exponent)));
        nan = _mm256_set1_epi16((int16_t)form.nan), move = _mm_cvtsi32_si128(5 - form.exponent);
        factor = splat(form.factor);
    }
    static bool fits(const Plan &plan) {
        Form form = form_of(plan);
        const bool last = form.nan < 0 || form.nan == half(127, 7, form.exponent);
        const bool four = form.exponent <= 4 && last, five = form.exponent == 5 && form.nan < 0;
        return form.exponent && (!BYTES || (plan.bits == 8 && (KIND == FOUR ? four : five)));
    }
    inline void unit(const uint8_t *from, int64_t bits, V *out) const {
        halves<KIND != FIVE>(from, bits, out);  // whether or not `marked`: a branch costs as much
#pragma GCC unroll 4
        for (int i = 0; i < UNIT / W; i++) out[i] *= factor;
    }

    // Numbers that lack a factor, in an order of their own (CROSSED); of a sum of them nothing is left if `seen` is
    // `spoilt` in the end. Even and odd bytes are multiplied to where they belong in words, with their signs.
    static constexpr bool CROSSED = BYTES;
    using Seen = __m256i;
    inline void loose(const uint8_t *from, int64_t bits, V *out, Seen &seen) const {
        if (!BYTES) return marked ? halves<true>(from, bits, out) : halves<false>(from, bits, out);
        const __m256i codes = _mm256_loadu_si256((const __m256i *)from);
        const __m256i words[] = {KIND == FIVE ? _mm256_slli_epi16(codes, 8) : _mm256_maddubs_epi16(even, codes),
                                 KIND == FIVE ? codes : _mm256_maddubs_epi16(odd, codes)};
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            V two[2];
            numbers(_mm256_and_si256(words[i], fields), two);
            out[i] = two[0], out[i + 2] = two[1];
        }
        if (KIND == FOUR) seen = _mm256_max_epu8(seen, _mm256_add_epi8(codes, codes));  // without their signs
    }
    bool spoilt(Seen seen) const {
        return KIND == FOUR && marked && _mm256_movemask_epi8(_mm256_cmpeq_epi8(seen, _mm256_set1_epi8(-2))) != 0;
    }
    float scale() const { return factor[0]; }

  private:
    template <bool CHECK> inline void halves(const uint8_t *from, int64_t bits, V *out) const {
#pragma GCC unroll 2
        for (int i = 0; i < UNIT / 16; i++) {
            const __m128i some = _mm_loadu_si128((const __m128i *)(from + i * 2 * bits));
            __m256i words;
            if (BYTES) {
                words = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(some), shifts);
            } else {
                words = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(some), spread);
                words = _mm256_sra_epi16(_mm256_mullo_epi16(words, shifts), move);
            }
            words = _mm256_and_si256(words, fields);
            if (CHECK) {
                __m256i magnitudes = _mm256_and_si256(words, _mm256_set1_epi16(0x7fff));
                words = _mm256_or_si256(words, _mm256_cmpeq_epi16(magnitudes, nan));
            }
            numbers(words, out + 2 * i);
        }
    }
    static inline void numbers(__m256i words, V *out) {
        out[0] = (V)_mm256_cvtph_ps(_mm256_castsi256_si128(words));
        out[1] = (V)_mm256_cvtph_ps(_mm256_extracti128_si256(words, 1));
    }
};

// What there is to multiply where a way has nothing looser than its levels
template <class Way> struct Strict : Way {
    using Way::Way;
    static constexpr bool CROSSED = false;
    struct Seen {};
    inline void loose(const uint8_t *from, int64_t bits, V *out, Seen &) const { this->unit(from, bits, out); }
    static bool spoilt(Seen) { return false; }
    static float scale() { return 1; }
};

// A unit in four steps
template <class Way> struct Four : Way {
    using Way::Way;
    inline void unit(const uint8_t *from, int64_t bits, V *out) const {
#pragma GCC unroll 4
        for (int i = 0; i < UNIT / W; i++) out[i] = this->get(from + i * bits);
    }
};

// One of these ways for chunks, as other decoders of codes are. A chunk is read 64 bytes far.
template <class Way> struct Eights {
    using Number = float;
    using Seen = typename Way::Seen;
    static constexpr bool CROSSED = Way::CROSSED;
    Way way;
    int64_t bits, tail;  // bytes of the last chunk

    explicit Eights(const Plan &plan) : way(plan), bits(plan.bits) {
        tail = plan.row_bytes - plan.columns / CHUNK * (CHUNK / 8) * bits;
    }
    inline void unit(const uint8_t *from, V *out) const { way.unit(from, bits, out); }
    inline void loose(const uint8_t *from, V *out, Seen &seen) const { way.loose(from, bits, out, seen); }
    bool spoilt(Seen seen) const { return way.spoilt(seen); }
    float scale() const { return way.scale(); }
    inline void get(const uint8_t *bytes, bool full, V *out) const {
        uint8_t room[CHUNK];
        ahead(bytes);
        if (!full) {
            memset(room, 0, sizeof room);
            bytes = (const uint8_t *)memcpy(room, bytes, (size_t)tail);
        }
        unit(bytes, out), unit(bytes + UNIT / 8 * bits, out + UNIT / W);
    }
};
template <class Way> using Strictly = Eights<Strict<Way>>;
#endif
