// Codes of a weight to vectors of integers without a sign: in the order of columns, or for less work in that in which
// they lie, which the input must have then too.

#pragma once

#include "int8_decode.h"
#include "int8_words_dots.h"

#ifdef WORDS

// From any number of bits. A word gets the byte or the two bytes in which its code lies, or its two codes. What is
// above is cleared, and the upper half of a product is what shifts each word down by its own count.
template <class N, int D> class Unpacker {
    static constexpr int CODES = N::STEP / 16;  // in a word
    __m256i places, fields, factors, apart, table[4];
    int sixteens, between;  // of a table

  public:
    static constexpr int PARTS = 1;  // steps of a unit, which is what is loaded at once
    static constexpr int64_t UNIT = N::STEP, LOADED = 16;
    const int64_t unit = UNIT, units, bytes, reach, parts = PARTS;  // as of Stored

    explicit Unpacker(const Product &p)
        : sixteens(p.bits > 4 ? 1 << (p.bits - 4) : 1), between(8 - p.bits), units(over(p.columns, UNIT)),
          bytes(N::STEP * p.bits / 8), reach((units - 1) * bytes + LOADED) {
        uint8_t place[32];
        uint16_t field[16], factor[16];
        const int bits = CODES * p.bits, ones = (1 << bits) - 1, code = ((1 << p.bits) - 1) << p.doubled;
        for (int i = 0; i < 16; i++) {
            const int byte = i * bits / 8, in = i * bits % 8, two = in + bits > 8, at = two ? in : in + 8;
            place[2 * i] = (uint8_t)(two ? byte : 0x80), place[2 * i + 1] = (uint8_t)(byte + two);
            field[i] = (uint16_t)(ones << at), factor[i] = (uint16_t)(1 << (16 - at + p.doubled));
        }
        places = ::loaded(place), fields = ::loaded(field), factors = ::loaded(factor);
        apart = _mm256_set1_epi16((short)(code | code << 8));
        for (int i = 0; i < 4; i++)
            table[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p.table + 16 * i)));
    }

    template <int> inline INLINE __m256i at(const uint8_t *row, int64_t unit) const { return (*this)(row, unit); }
    inline INLINE __m256i operator()(const uint8_t *row, int64_t unit) const {
        const __m128i read = _mm_loadu_si128((const __m128i *)(row + unit * (D == RAW ? 16 : bytes)));
        if constexpr (D == RAW) return _mm256_cvtepu8_epi16(read);
        const __m256i spread = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(read), places);
        __m256i codes = _mm256_mulhi_epu16(_mm256_and_si256(spread, fields), factors);
        if constexpr (CODES == 2) {
            const __m256i upper = _mm256_sll_epi16(codes, _mm_cvtsi32_si128(between));
            codes = _mm256_and_si256(_mm256_or_si256(codes, upper), apart);
        }
        return D == LOOKED_UP ? looked_up(codes) : codes;
    }

  private:
    inline INLINE __m256i looked_up(__m256i codes) const {
        if constexpr (CODES == 2) return _mm256_shuffle_epi8(table[0], codes);
        const __m256i at = _mm256_or_si256(codes, _mm256_set1_epi16((short)0x8000));  // upper bytes become 0
        const __m256i part = _mm256_srli_epi16(codes, 4);
        __m256i found = _mm256_setzero_si256();
        for (int i = 0; i < sixteens; i++) {
            const __m256i here = _mm256_cmpeq_epi16(part, _mm256_set1_epi16((short)i));
            found = _mm256_or_si256(found, _mm256_and_si256(_mm256_shuffle_epi8(table[i], at), here));
        }
        return found;
    }
};

// From 1, 2 or 4 bits, to bytes: each byte of a vector has some codes, one for each of as many steps
enum Shape { STRAIGHT, DOUBLED, BY_TABLE };

template <int BITS, Shape S> class InPlace {
    __m256i ones, table;

  public:
    static constexpr int PARTS = 8 / BITS;
    static constexpr int64_t UNIT = PARTS * Bytes::STEP, LOADED = 32;
    const int64_t units, bytes = LOADED;

    explicit InPlace(const Product &p)
        : ones(_mm256_set1_epi8((char)(((1 << BITS) - 1) << (S == DOUBLED)))),
          table(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p.table))),
          units(over(p.columns, UNIT)) {}

    template <int PART> inline INLINE __m256i at(const uint8_t *row, int64_t unit) const {
        constexpr int down = PART * BITS - (S == DOUBLED);
        __m256i v = loaded(row + unit * LOADED);
        if constexpr (down > 0) v = _mm256_srli_epi16(v, down);
        if constexpr (down < 0) v = _mm256_add_epi8(v, v);
        v = _mm256_and_si256(v, ones);
        return S == BY_TABLE ? _mm256_shuffle_epi8(table, v) : v;
    }
};

// Rows as they are stored, whatever their codes
template <class N> struct Stored {
    typedef typename N::Number Number;
    const int64_t unit, units, bytes;  // columns of a unit; of a row; of a unit
    const int64_t parts, reach;        // steps of a unit; bytes that are read for a row

    virtual ~Stored() {}
    // All blocks of NR rows, with 1, 2 or 4 rows of the input. What lies `ahead` of them is read later
    virtual void add(const uint8_t *const *from, int64_t ahead, int64_t rows, const Number *q, int64_t stride,
                     const BlockCut &cut, const Factors &by, Eight *sums) const = 0;

  protected:
    template <class U>
    explicit Stored(const U &u)
        : unit(U::UNIT), units(u.units), bytes(u.bytes), parts(U::PARTS), reach((units - 1) * bytes + U::LOADED) {}
};
template <class N, class U> class StoredBy final : public Stored<N> {
    const U decode;

    struct Rows {
        const U &decode;
        const uint8_t *const *from;
        const int64_t ahead;
        template <int PART> inline INLINE __m256i at(int r, int64_t unit) const {
            if (PART == 0) _mm_prefetch((const char *)from[r] + ahead + unit * decode.bytes, _MM_HINT_T1);
            return decode.template at<PART>(from[r], unit);
        }
    };

  public:
    explicit StoredBy(const Product &p) : Stored<N>(U(p)), decode(p) {}
    void add(const uint8_t *const *from, int64_t ahead, int64_t rows, const typename N::Number *q, int64_t stride,
             const BlockCut &cut, const Factors &by, Eight *sums) const override {
        each<3>([&](auto i) {
            if (rows <= 1 << i && rows > (1 << i) / 2)
                add_blocks<N, U::PARTS, false, NR, 1 << i>(Rows{decode, from, ahead}, q, stride, cut.blocks,
                                                           cut.width, this->units, by, sums);
        });
    }
};

#endif
