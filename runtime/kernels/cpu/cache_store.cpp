// Keys and values of new tokens, encoded into their slots of a cache: codes, scales and zero points of each token.
//
// The arithmetic is that of the stage, operation by operation in float32, so that what is stored is equal to the bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

enum Rounding { NEAREST, FLOOR, TABLE };
enum Stored { FLOAT32, FLOAT16, BFLOAT16 };

struct Encoding {
    int64_t features, group, groups;   // numbers of a token, numbers and scales under one of its scales
    int64_t code_bytes, zero_bytes;    // of a token
    int32_t bits, rounding, symmetric, stored, borders;
    float divisor, least, most;        // what a scale is the largest number over, and the range of scales
    float lowest, highest;             // integers that numbers are rounded to; code 0 is the lowest
    float border[255];                 // of a table: the largest number that goes to each level but the last
    uint8_t code[256];                 // and the codes of its levels
};

struct Slots {
    int64_t heads, slots;              // of a sequence, of a head
    uint8_t *codes, *zeros;            // of the first slot of all; those of a head lie one after the other
    void *scales;
};

struct Tokens {
    const void *x;                     // [sequences, heads, tokens, features], the last one after the other
    int64_t sequence, head, token;     // numbers from one to the next
};

static inline int32_t as_int(float f) { int32_t i; memcpy(&i, &f, 4); return i; }
static inline float as_float(int32_t i) { float f; memcpy(&f, &i, 4); return f; }

// Whether all numbers are finite, which become float32
static bool numbers(const float *x, int64_t count, float *out) {
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        out[i] = x[i];
        most = std::max(most, as_int(x[i]) & 0x7fffffff);
    }
    return most < 0x7f800000;
}
static bool numbers(const uint16_t *x, int64_t count, float *out) {  // bfloat16
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        out[i] = as_float((int32_t)((uint32_t)x[i] << 16));
        most = std::max(most, (int32_t)(x[i] & 0x7fff));
    }
    return most < 0x7f80;
}

static uint16_t half_bits(float scale) {  // of one above zero that float16 holds, to nearest even
    if (scale < 0x1p-14f) return (uint16_t)(as_int(scale + 0.5f) - as_int(0.5f));
    int32_t i = as_int(scale);
    return (uint16_t)((i + 0xfff + ((i >> 13) & 1) - (112 << 23)) >> 13);
}
static float half(uint16_t bits) {
    if (bits < 0x400) return (float)bits * 0x1p-24f;
    return as_float(((int32_t)bits << 13) + (112 << 23));
}

// The scale as it is stored at `place`
static float stored(const Encoding &to, float scale, void *scales, int64_t place) {
    scale = std::min(std::max(scale, to.least), to.most);
    if (to.stored == FLOAT32) {
        ((float *)scales)[place] = scale;
    } else if (to.stored == FLOAT16) {
        uint16_t bits = half_bits(scale);
        ((uint16_t *)scales)[place] = bits, scale = half(bits);
    } else {
        int32_t i = as_int(scale);
        uint16_t bits = (uint16_t)((i + 0x7fff + ((i >> 16) & 1)) >> 16);
        ((uint16_t *)scales)[place] = bits, scale = as_float((int32_t)((uint32_t)bits << 16));
    }
    return scale;
}

constexpr float MIDDLE = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to integers, half to even
static inline float clamped(float x, float lowest, float highest) {
    x = x < lowest ? lowest : x;
    return x > highest ? highest : x;
}

static void table_codes(const Encoding &to, const float *x, int64_t count, float scale, uint8_t *codes) {
    for (int64_t i = 0; i < count; i++)
        codes[i] = to.code[std::lower_bound(to.border, to.border + to.borders, x[i] / scale) - to.border];
}
template <bool DOWN>
static void integer_codes(const Encoding &to, const float *x, int64_t count, float scale, float zero, uint8_t *codes) {
    const float lowest = to.lowest, highest = to.highest;
    for (int64_t i = 0; i < count; i++) {
        float level = clamped(x[i] / scale + zero, lowest, highest), near = (level + MIDDLE) - MIDDLE;
        if (DOWN) near -= near > level ? 1.0f : 0.0f;
        codes[i] = (uint8_t)(int32_t)(near - lowest);
    }
}

// Codes of numbers that share a scale, which is stored at `place`; their zero point
static uint8_t coded(const Encoding &to, const float *x, int64_t count, void *scales, int64_t place, uint8_t *codes) {
    if (to.symmetric) {
        int32_t largest = 0;
        for (int64_t i = 0; i < count; i++) largest = std::max(largest, as_int(x[i]) & 0x7fffffff);
        const float scale = stored(to, as_float(largest) / to.divisor, scales, place);
        if (to.rounding == TABLE) table_codes(to, x, count, scale, codes);
        else if (to.rounding == FLOOR) integer_codes<true>(to, x, count, scale, 0, codes);
        else integer_codes<false>(to, x, count, scale, 0, codes);
        return 0;
    }
    float low = 0, high = 0;
    for (int64_t i = 0; i < count; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    const float scale = stored(to, (high - low) / to.divisor, scales, place);
    const float zero = (clamped(-low / scale, 0, to.highest) + MIDDLE) - MIDDLE;
    integer_codes<false>(to, x, count, scale, zero, codes);
    return (uint8_t)(int32_t)zero;
}

// Codes as a stream of bits, the lowest first; rows end with a whole byte
static void packed(const uint8_t *codes, int64_t count, int32_t bits, uint8_t *out) {
    if (bits == 8) {
        memcpy(out, codes, (size_t)count);
        return;
    }
    int64_t i = 0;
    if (bits == 4)
        for (; i + 2 <= count; i += 2) *out++ = (uint8_t)(codes[i] | codes[i + 1] << 4);
    uint32_t word = 0;
    int32_t held = 0;
    for (; i < count; i++) {
        word |= (uint32_t)codes[i] << held, held += bits;
        if (held >= 8) *out++ = (uint8_t)word, word >>= 8, held -= 8;
    }
    if (held) *out = (uint8_t)word;
}

template <class T> struct Storing {
    const Encoding &to;
    const Slots &slots;
    std::unique_ptr<float[]> x;
    std::unique_ptr<uint8_t[]> codes, zeros;

    Storing(const Encoding &to, const Slots &slots)
        : to(to), slots(slots), x(new float[to.features]), codes(new uint8_t[to.features]),
          zeros(new uint8_t[to.groups]) {}

    bool token(const T *from, int64_t slot) {
        if (!numbers(from, to.features, x.get())) return false;
        for (int64_t g = 0; g < to.groups; g++) {
            const int64_t at = g * to.group, count = std::min(to.group, to.features - at);
            zeros[g] = coded(to, x.get() + at, count, slots.scales, slot * to.groups + g, codes.get() + at);
        }
        packed(codes.get(), to.features, to.bits, slots.codes + slot * to.code_bytes);
        if (!to.symmetric) packed(zeros.get(), to.groups, to.bits, slots.zeros + slot * to.zero_bytes);
        return true;
    }
};

template <class T>
static bool stored_heads(const Encoding &to, const Slots &slots, const Tokens &tokens, const int64_t *positions,
                         int64_t count, int64_t next, int64_t first, int64_t last) {
    Storing<T> storing(to, slots);
    for (int64_t unit = first; unit < last; unit++) {
        const int64_t sequence = unit / slots.heads;
        const T *x = (const T *)tokens.x + sequence * tokens.sequence + unit % slots.heads * tokens.head;
        for (int64_t i = 0; i < count; i++) {
            const int64_t slot = positions ? positions[sequence * count + i] : next + i;
            if (slot < 0 || slot >= slots.slots) return false;
            if (!storing.token(x + i * tokens.token, unit * slots.slots + slot)) return false;
        }
    }
    return true;
}

extern "C" {

int64_t rhoc_encoding_bytes() { return sizeof(Encoding); }
int64_t rhoc_slots_bytes() { return sizeof(Slots); }

// `count` tokens of heads `first` to `last` of all sequences, in the slots of their `positions` [sequences, count], or
// from the slot `next` on where there are none. 0 where a number is not finite or a slot not there; what was stored
// before that stays.
int32_t rhoc_cache_store(const Encoding *to, const Slots *slots, int32_t bfloat, const void *x, int64_t sequence,
                         int64_t head, int64_t token, const int64_t *positions, int64_t count, int64_t next,
                         int64_t first, int64_t last) {
    const Tokens tokens{x, sequence, head, token};
    if (bfloat) return stored_heads<uint16_t>(*to, *slots, tokens, positions, count, next, first, last);
    return stored_heads<float>(*to, *slots, tokens, positions, count, next, first, last);
}

}
