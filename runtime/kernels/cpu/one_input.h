// One input and levels at equal distances, with AVX2 and a result in bfloat16: codes are not moved at all.
//
// Each of eight lanes has eight codes that follow each other, as they are stored. One of them is masked where it
// lies, which makes it a power of two too large, and inputs are put in this order and made as much smaller. What
// levels begin with, and zero points, are multiplied with sums of inputs: less exact than float32 is, which would
// tell in a result of float32.

#pragma once

#include "decode_eights.h"
#include "decode_scalar.h"

#if EIGHTS
// Eight codes of B bits in one word of 32 bits, or in two that are its first and its last four bytes
template <int B> struct WordsOf {
    static constexpr int WORDS = B <= 4 ? 1 : 2;
    __m256i spread;

    static constexpr int word(int code) { return (code + 1) * B > 32; }
    static constexpr int shift(int code) { return code * B - (word(code) ? 8 * (B - 4) : 0); }

    WordsOf() {
        uint8_t from[32];
        for (int i = 0; i < 16; i++) {
            int lane = B <= 4 ? i / 4 : i / 4 % 2, byte = B <= 4 ? i % 4 : i % 4 + i / 8 * (B - 4);
            from[i] = from[i + 16] = (uint8_t)(byte < B ? lane * B + byte : 0x80);
        }
        spread = _mm256_loadu_si256((const __m256i *)from);
    }
    inline __m256i two(const uint8_t *low, const uint8_t *high) const {
        __m128i first = _mm_loadu_si128((const __m128i *)low), second = _mm_loadu_si128((const __m128i *)high);
        return _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1), spread);
    }
    inline void get(const uint8_t *bytes, __m256i *out) const {
        if constexpr (B == 4) {
            out[0] = _mm256_loadu_si256((const __m256i *)bytes);
        } else if constexpr (B < 4) {
            out[0] = two(bytes, bytes + 4 * B);
        } else {
            __m256i even = two(bytes, bytes + 4 * B), odd = two(bytes + 2 * B, bytes + 6 * B);
            out[0] = _mm256_unpacklo_epi64(even, odd), out[1] = _mm256_unpackhi_epi64(even, odd);
        }
    }
    template <int CODE> static inline V number(const __m256i *words) {  // times 2^shift, but of a code at the top
        constexpr int from = shift(CODE), mask = (int)(((1u << B) - 1) << from);
        const __m256i word_of = words[word(CODE)];
        if (from + B == 32) return (V)_mm256_cvtepi32_ps(_mm256_srli_epi32(word_of, from));
        return (V)_mm256_cvtepi32_ps(_mm256_and_si256(word_of, _mm256_set1_epi32(mask)));
    }
    static float scale(int code) { return shift(code) + B == 32 ? 1 : 1 / (float)(1 << shift(code)); }
};

template <int B> class OneInput {
    const Job &job;
    const Plan &plan;
    CodeRows rows;
    Scales table;
    int64_t chunks, whole, per, groups;  // per: chunks of a group
    std::unique_ptr<float[]> x, sums;    // inputs in order, and the sums of those that share a scale

  public:
    OneInput(const Job &job, const Plan &plan, const Fields &fields)
        : job(job), plan(plan), rows(plan, fields), table(plan, fields), chunks((plan.columns + CHUNK - 1) / CHUNK),
          whole(plan.columns / CHUNK), per(plan.scale_columns == 1 ? chunks : plan.share_columns / CHUNK),
          groups(plan.scale_columns), x(new float[chunks * CHUNK + W]), sums(new float[groups + W]()) {
        const float *from = (const float *)job.x;
        for (int64_t c = 0; c < chunks; c++, from += CHUNK) {
            V total{};
            for (int lane = 0; lane < W; lane++) {
                total += load(from + lane * W);
                for (int code = 0; code < 8; code++)
                    x[c * CHUNK + code * W + lane] = from[lane * W + code] * WordsOf<B>::scale(code);
            }
            sums[c / per] += sum(total);
        }
    }

    void run(int64_t first, int64_t last) {
        const WordsOf<B> words;
        const float step = plan.levels[1] - plan.levels[0];
        uint8_t room[2 * CHUNK] = {};
        for (int64_t n = first; n < last; n++) {
            const uint8_t *bytes = rows.get(n);
            table.row(n);
            const float *at = x.get(), *scale = table.scale;
            V total[2] = {};
            int64_t c = 0;
            for (; c < whole; scale++) {
                const V factor = splat(*scale);
                for (const int64_t end = std::min(whole, c + per); c < end; c++, bytes += 8 * B, at += CHUNK)
                    chunk(words, bytes, at, factor, total);
            }
            if (c < chunks) {
                memcpy(room, bytes, (size_t)(plan.row_bytes - whole * 8 * B));
                chunk(words, room, at, splat(table.scale[c / per]), total);
            }
            finish(job, 0, n, sum(total[0] + total[1]) * step + beginnings());
        }
    }

  private:
    static ALWAYS void chunk(const WordsOf<B> &words, const uint8_t *bytes, const float *x, V scale, V *total) {
        __m256i found[WordsOf<B>::WORDS];
        ahead(bytes);
        words.get(bytes, found);
        V even = words.template number<0>(found) * load(x), odd = words.template number<1>(found) * load(x + W);
        even = fused(words.template number<2>(found), load(x + 2 * W), even);
        odd = fused(words.template number<3>(found), load(x + 3 * W), odd);
        even = fused(words.template number<4>(found), load(x + 4 * W), even);
        odd = fused(words.template number<5>(found), load(x + 5 * W), odd);
        even = fused(words.template number<6>(found), load(x + 6 * W), even);
        odd = fused(words.template number<7>(found), load(x + 7 * W), odd);
        total[0] = fused(even, scale, total[0]), total[1] = fused(odd, scale, total[1]);
    }
    float beginnings() const {
        V total{};
        for (int64_t g = 0; g < groups; g += W) {
            V level = splat(plan.levels[0]);
            if (plan.zero_kind) level -= load(table.zero + g);
            total = fused(load(table.scale + g) * level, load(sums.get() + g), total);
        }
        return sum(total);
    }
};

template <int B = 1>
static void one_input(const Job &job, const Plan &plan, const Fields &fields, int64_t first, int64_t last) {
    if constexpr (B < 8)
        if (plan.bits != B) return one_input<B + 1>(job, plan, fields, first, last);
    OneInput<B>(job, plan, fields).run(first, last);
}

static bool is_one_input(const Job &job, const Plan &plan) {
    const Spread kind = spread_of(plan);
    return job.rows == 1 && job.bfloat && (kind == ROW || kind == CHUNKS) && Grid::fits(plan);
}
#endif
