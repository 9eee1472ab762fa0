// Up to four inputs of bfloat16 and any 16 levels, with AVX2: products of words.
//
// Of 32 bytes the lower and the upper halves are looked up as they lie; each lane then adds up eight products, or
// four where scales are of fewer than 32 numbers. Levels are rounded to 1/16383 of the largest, where no power of
// two makes them whole, which is finer than bfloat16. The inputs of a lane share a power of two: those that are no
// less than 1/64 of the largest are what they were.

#pragma once

#include "decode_eights.h"
#include "decode_scalar.h"

#if EIGHTS
constexpr int LARGEST_BITS = 14;  // of a word's size: eight products of two words are less than 2^31
constexpr float LARGEST = (1 << LARGEST_BITS) - 1;

static inline float largest_of(const float *some, int count) {
    uint32_t most = 0;  // as integers, of which what is no number is the largest
    for (int i = 0; i < count; i++) most = std::max(most, as_int(some[i]) & 0x7fffffff);
    return as_float(most);
}

// The words of 16 levels, of whose two bytes each is looked up
class WordLevels {
    __m256i bytes[2];

  public:
    float unit;  // what words are to be multiplied by

    explicit WordLevels(const Plan &plan) {
        const float most = largest_of(plan.levels, 16), power = std::ldexp(1.0f, LARGEST_BITS - 1 - std::ilogb(most));
        bool whole = most * power <= LARGEST;
        for (int code = 0; code < 16; code++)
            whole &= plan.levels[code] * power == std::rint(plan.levels[code] * power);
        const float by = whole ? power : LARGEST / most;
        uint8_t half[2][16];
        for (int code = 0; code < 16; code++) {
            const int word = (int)std::rint(plan.levels[code] * by);
            half[0][code] = (uint8_t)word, half[1][code] = (uint8_t)(word >> 8);
        }
        for (int b = 0; b < 2; b++)
            bytes[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)half[b]));
        unit = 1 / by;
    }
    static bool fits(const Plan &plan) {
        const float most = largest_of(plan.levels, 16);
        return plan.bits == 4 && most > 0x1p-20f && most < 0x1p20f;  // units of inputs, too, are to be numbers
    }
    // Of each 32 codes the words of the first 16 and of the others, even and odd ones
    inline void get(const uint8_t *from, __m256i *first, __m256i *second) const {
        const __m256i both = _mm256_loadu_si256((const __m256i *)from), low = _mm256_set1_epi8(15);
        const __m256i codes[2] = {_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const __m256i lower = _mm256_shuffle_epi8(bytes[0], codes[i]);
            const __m256i upper = _mm256_shuffle_epi8(bytes[1], codes[i]);
            first[i] = _mm256_unpacklo_epi8(lower, upper), second[i] = _mm256_unpackhi_epi8(lower, upper);
        }
    }
};

// M inputs as words in the order of `WordLevels`, with what each lane's sums are to be multiplied by
template <bool HALVES, int M> class WordInputs {
    int64_t chunks;
    std::unique_ptr<int16_t[]> words;
    std::unique_ptr<float[]> units;

  public:
    static constexpr int SUMS = HALVES ? 2 : 1;  // vectors of sums of a chunk

    explicit WordInputs(int64_t chunks)
        : chunks(chunks), words(new int16_t[chunks * M * CHUNK]), units(new float[chunks * M * SUMS * W]) {}
    // false where a lane has what is no number, or so little that its power of two would be none
    bool enter(const Job &job, float unit_of_levels) {
        bool fine = true;
        for (int64_t i = 0; i < chunks * M * W; i++) {
            const int64_t c = i / W / M, m = i / W % M, lane = i % W;
            const float *x = (const float *)job.x + m * job.stride + c * CHUNK + lane / 4 * 32 + lane % 4 * 4;
            int16_t *word = words.get() + i / W * CHUNK + lane * 2;
            float *unit = units.get() + i / W * SUMS * W + lane;
            const float first = largest_of(x, 4), second = largest_of(x + 16, 4), most = std::max(first, second);
            fine &= scaled(x, HALVES ? first : most, word, unit);
            fine &= scaled(x + 16, HALVES ? second : most, word + CHUNK / 2, unit + (SUMS - 1) * W);
        }
        for (int64_t i = 0; i < chunks * M * SUMS * W; i++) units[i] *= unit_of_levels;
        return fine;
    }
    // The products of a chunk, or of half of it, with its levels, added up in each lane
    ALWAYS V times(const __m256i *levels, int64_t chunk, int m, int half) const {
        const __m256i *word = (const __m256i *)(words.get() + (chunk * M + m) * CHUNK);
        auto two = [&](int i) {
            return _mm256_add_epi32(_mm256_madd_epi16(levels[i], _mm256_loadu_si256(word + i)),
                                    _mm256_madd_epi16(levels[i + 1], _mm256_loadu_si256(word + i + 1)));
        };
        const __m256i all = HALVES ? two(2 * half) : _mm256_add_epi32(two(0), two(2));
        return (V)_mm256_cvtepi32_ps(all) * load(units.get() + ((chunk * M + m) * SUMS + half) * W);
    }

  private:
    static bool scaled(const float *four, float most, int16_t *word, float *unit) {
        const uint32_t exponent = as_int(most) >> 23 << 23, one = 127u << 23, shift = (LARGEST_BITS - 1) << 23;
        const float by = most > 0 ? as_float(2 * one + shift - exponent) : 0;
        for (int i = 0; i < 4; i++) word[i % 2 * 16 + i / 2] = (int16_t)_mm_cvtss_si32(_mm_set_ss(four[i] * by));
        *unit = most > 0 ? as_float(exponent - shift) : 0;
        return most == 0 || (most > 0x1p-80f && most < INFINITY);
    }
};

template <Spread KIND, bool HALVES, int M> class FewSixteen {
    const Job &job;
    const Plan &plan;
    CodeRows rows;
    Scales table;
    WordLevels levels;
    int64_t chunks = (plan.columns + CHUNK - 1) / CHUNK;
    WordInputs<HALVES, M> x;
    __m256i lanes[2];  // KIND is PARTS: the scale of each lane, of those that begin at a chunk

  public:
    FewSixteen(const Job &job, const Plan &plan, const Fields &fields)
        : job(job), plan(plan), rows(plan, fields), table(plan, fields), levels(plan), x(chunks) {
        int32_t part[2][W];
        for (int lane = 0; lane < W; lane++)
            for (int i = 0; i < 2; i++)
                part[i][lane] = (int32_t)((lane / 4 * 32 + i * 16 + lane % 4 * 4) / plan.share_columns);
        for (int i = 0; i < 2; i++) lanes[i] = _mm256_loadu_si256((const __m256i *)part[i]);
    }

    bool run(int64_t first, int64_t last) {
        if (!x.enter(job, levels.unit)) return false;
        for (int64_t n = first; n < last; n++) {
            const uint8_t *bytes = rows.get(n);
            table.row(n);
            V total[M] = {};
            KIND == PARTS ? parts(bytes, total) : groups(bytes, total);
            for (int m = 0; m < M; m++) finish(job, m, n, sum(total[m]));
        }
        return true;
    }

  private:
    void parts(const uint8_t *bytes, V *total) const {
        const WordLevels looked = levels;  // copies, of which the compiler sees that nothing changes them
        const __m256i place[2] = {lanes[0], lanes[1]};
        const int64_t per = CHUNK / plan.share_columns;
        const float *scale = table.scale;
        for (int64_t c = 0; c < chunks; c++, bytes += CHUNK / 2, scale += per) {
            __m256i found[4];
            ahead(bytes);
            looked.get(bytes, found, found + 2);
            const __m256 scales = _mm256_loadu_ps(scale);
#pragma GCC unroll 2
            for (int i = 0; i < x.SUMS; i++) {
                const V factor = (V)_mm256_permutevar8x32_ps(scales, place[i]);
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) total[m] = fused(x.times(found, c, m, i), factor, total[m]);
            }
        }
    }
    void groups(const uint8_t *bytes, V *total) const {
        const WordLevels looked = levels;
        const int64_t per = plan.scale_columns == 1 ? chunks : plan.share_columns / CHUNK;
        const float *scale = table.scale;
        for (int64_t c = 0; c < chunks; scale++) {
            V sums[M] = {};
            for (const int64_t end = std::min(chunks, c + per); c < end; c++, bytes += CHUNK / 2) {
                __m256i found[4];
                ahead(bytes);
                looked.get(bytes, found, found + 2);
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) sums[m] += x.times(found, c, m, 0);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) total[m] = fused(sums[m], splat(*scale), total[m]);
        }
    }
};

template <int M>
static bool few_sixteen(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    if constexpr (M > 1)
        if (job.rows < M) return few_sixteen<M - 1>(job, plan, fields, first, last);
    if (plan.scale_columns == 1 || plan.share_columns > CHUNK)
        return FewSixteen<CHUNKS, false, M>(job, plan, fields).run(first, last);
    if (plan.share_columns >= 32) return FewSixteen<PARTS, false, M>(job, plan, fields).run(first, last);
    return FewSixteen<PARTS, true, M>(job, plan, fields).run(first, last);
}

// Results for up to four inputs; false where this is not for them.
static bool few_sixteen(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    const Spread kind = spread_of(plan);
    if (!job.bfloat || job.rows > 4 || plan.zero_kind || kind == ANY || !WordLevels::fits(plan)) return false;
    if (kind == PARTS && plan.share_columns < W) return false;
    return few_sixteen<4>(job, plan, fields, first, last);
}
#endif
