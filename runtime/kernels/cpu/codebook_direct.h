// One input: vectors are multiplied where they lie in the table, which takes a load less than to move them.

#pragma once

#include "codebook_e8p.h"
#include "codebook_tables.h"
#include "streamed.h"

template <int P> static inline typename Vector<float, P>::Type added(typename Vector<float, P>::Type total,
                                                                     typename Vector<float, P>::Type a,
                                                                     typename Vector<float, P>::Type b) {
#if defined(__AVX512F__)
    if constexpr (P == 16) return (typename Vector<float, P>::Type)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)total);
#endif
#if defined(__FMA__)
    if constexpr (P == 8) return (typename Vector<float, P>::Type)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)total);
    if constexpr (P == 4) return (typename Vector<float, P>::Type)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)total);
#endif
    return a * b + total;
}

template <int P> static inline float total_of(typename Vector<float, P>::Type v) {
    float total = 0;
    for (int i = 0; i < P; i++) total += v[i];
    return total;
}

// The input in vectors of `width` numbers of which `size` are its own, and its sums over each vector
static inline void arranged(const Job &job, bool bfloat, int64_t size, int64_t width, int64_t vectors, float *out,
                            float *shared) {
    for (int64_t i = 0; i < vectors; i++) {
        shared[i] = 0;
        for (int64_t j = 0; j < size && i * size + j < job.columns; j++) {
            int64_t k = i * size + j;
            float value = bfloat ? number(((const Bfloat *)job.x)[k]) : ((const float *)job.x)[k];
            out[i * width + j] = value, shared[i] += value;
        }
    }
}

class Direct {
    static constexpr int ROWS = 4;

    const Job &job;
    const BookPlan &plan;
    const uint8_t *codes;
    const float *factors;
    RowScales scales;
    Indices indices;
    Tables<float> tables;
    alignas(64) float sizes[256][8];  // of E8P
    alignas(64) uint32_t signs[256][8];
    int64_t vectors, each;  // of a row, all parts of products counted; codes of one
    std::unique_ptr<float[]> x, shared;
    std::unique_ptr<uint16_t[]> room, parts;
    const float *input;

  public:
    // Whether a weight is one of those for which this is faster
    static bool takes(const BookPlan &plan) {
        return plan.scale_columns == 1 && (plan.e8p ? !plan.product : plan.size > 2 && plan.bits <= 12);
    }
    Direct(const Job &job, const BookPlan &plan, const void *const *fields, bool bfloat)
        : job(job), plan(plan), codes((const uint8_t *)fields[CODES_FIELD]),
          factors((const float *)fields[BOOKS_FIELD]), scales(scalar_plan(plan), fields[SCALE_FIELD]),
          indices(plan, codes), tables(plan, fields[BOOKS_FIELD]),
          vectors(plan.product ? plan.vectors * plan.books : plan.vectors), each(plan.product ? 1 : plan.books),
          x(new float[vectors * tables.width + 2 * CHUNK]()), shared(new float[vectors + CHUNK]()),
          room(new uint16_t[ROWS * (vectors * each + CHUNK)]) {
        float *aligned = (float *)(((uintptr_t)x.get() + 63) & ~(uintptr_t)63);
        arranged(job, bfloat, plan.size, tables.width, vectors, aligned, shared.get());
        input = aligned;
        if (!plan.e8p) return;
        Points().tables(sizes, signs);
        parts.reset(new uint16_t[ROWS * (vectors + CHUNK)]);
    }

    void run(int64_t first, int64_t last) {
        for (int64_t n = first; n < last;) {
            int64_t end = std::min(last, n - n % plan.book_rows + plan.book_rows);
            if (!plan.e8p) tables.row(n);
            for (; n < end; n += ROWS) {
                int64_t rows[ROWS];
                float sums[ROWS];
                for (int i = 0; i < ROWS; i++) rows[i] = std::min(n + i, end - 1);
                if (plan.e8p)
                    e8p(rows, sums);
                else if (plan.bits == 8)
                    widths<uint8_t>(rows, sums);
                else
                    widths<uint16_t>(rows, sums);
                for (int i = 0; i < ROWS && n + i < end; i++)
                    finish(job, 0, n + i, sums[i] * scales.factor(n + i) * plan.unit);
            }
            n = end;
        }
    }

  private:
    template <class Code> const Code *of_row(int64_t n, int i) {
        const uint8_t *row = codes + n * plan.row_bytes;
        soon(row, plan.row_bytes);
        if (plan.bits == 8 * sizeof(Code) && (uintptr_t)row % sizeof(Code) == 0) return (const Code *)row;
        int64_t count = vectors * each;
        Code *copy = (Code *)(room.get() + i * (count + CHUNK));
        return (const Code *)memcpy(copy, indices.get(n, 0, count), (size_t)count * sizeof(Code));
    }
    template <class Code> void widths(const int64_t *rows, float *sums) {
        const Code *code[ROWS];
        for (int i = 0; i < ROWS; i++) code[i] = of_row<Code>(rows[i], i);
        switch (tables.width) {
            case 4: return books<4>(code, sums);
            case 8: return books<8>(code, sums);
            default: return books<16>(code, sums);
        }
    }
    template <int P, class Code> void books(const Code *const *code, float *sums) {
        if (plan.product) return product<P>(code, sums);
        if (each == 1) return several<P, 1>(code, sums);
        if (each == 2) return several<P, 2>(code, sums);
        for (int i = 0; i < ROWS; i++) sums[i] = 0;
        for (int64_t b = 0; b < each; b++) {
            float more[ROWS];
            const Code *from[ROWS];
            for (int i = 0; i < ROWS; i++) from[i] = code[i] + b;
            several<P, 1>(from, more, each, b);
            for (int i = 0; i < ROWS; i++) sums[i] += more[i];
        }
    }
    template <int P, int BOOKS, class Code>
    void several(const Code *const *code, float *sums, int64_t step = BOOKS, int64_t book = 0) {
        typedef typename Vector<float, P>::Type T;
        T total[2][ROWS] = {};
        const float *table = tables.table + book * tables.entries * P;
        const Code *from[ROWS];
        for (int i = 0; i < ROWS; i++) from[i] = code[i];
        auto one = [&](T *sum, int64_t v) {
            T here;
            memcpy(&here, input + v * P, sizeof here);
#pragma GCC unroll 2
            for (int b = 0; b < BOOKS; b++)
#pragma GCC unroll 4
                for (int i = 0; i < ROWS; i++) {
                    T entry;
                    memcpy(&entry, table + ((int64_t)from[i][v * step + b] + b * tables.entries) * P, sizeof entry);
                    sum[i] = added<P>(sum[i], here, entry);
                }
        };
        int64_t v = 0;
        for (; v + 2 <= vectors; v += 2) one(total[0], v), one(total[1], v + 1);
        if (v < vectors) one(total[0], v);
        for (int i = 0; i < ROWS; i++) sums[i] = total_of<P>(total[0][i] + total[1][i]);
    }
    void e8p(const int64_t *rows, float *sums) {
        const uint16_t *code[ROWS];
        for (int i = 0; i < ROWS; i++) code[i] = of_row<uint16_t>(rows[i], i), sums[i] = 0;
        for (int64_t b = 0; b < each; b++) {
            const uint16_t *of_book[ROWS];
            for (int i = 0; i < ROWS; i++)
                of_book[i] = each == 1 ? code[i] : of_one(code[i], each, b, vectors, parts.get() + i * (vectors + CHUNK));
            points(of_book, each == 1 ? 1 : factors[b] / 4, sums);  // of a single one it is left to the end
        }
    }
    void points(const uint16_t *const *code, float factor, float *sums) const {
        typedef typename Vector<float, 8>::Type T;
        typedef typename Vector<uint32_t, 8>::Type Sign;
        const uint16_t *from[ROWS];
        T total[2][ROWS] = {};
        for (int i = 0; i < ROWS; i++) from[i] = code[i];
        auto one = [&](T *sum, int64_t v) {
            T here;
            memcpy(&here, input + v * 8, sizeof here);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) {
                uint16_t word = from[i][v];
                Sign size, sign;
                memcpy(&size, sizes[word >> 8], sizeof size), memcpy(&sign, signs[word & 255], sizeof sign);
                sum[i] = added<8>(sum[i], here, (T)(size ^ sign));
            }
        };
        int64_t v = 0;
        for (; v + 2 <= vectors; v += 2) one(total[0], v), one(total[1], v + 1);
        if (v < vectors) one(total[0], v);
        for (int i = 0; i < ROWS; i++) sums[i] += (total_of<8>(total[0][i] + total[1][i]) + moved(from[i])) * factor;
    }
    // The sum of what moves by 1/4 add
    float moved(const uint16_t *code) const {
        V total = {};
        int64_t v = 0;
        for (; v + W <= vectors; v += W) {
            Short words;
            memcpy(&words, code + v, sizeof words);
            total += floats(bits(load(shared.get() + v)) ^ (I)(__builtin_convertvector(words, U) << 31));
        }
        float rest = sum(total);
        for (; v < vectors; v++) rest += code[v] & 1 ? -shared[v] : shared[v];
        return rest;
    }
    template <int P, class Code> void product(const Code *const *code, float *sums) {
        typedef typename Vector<float, P>::Type T;
        T total[ROWS] = {};
        for (int64_t v = 0, book = 0; v < vectors; v++, book = book + 1 == plan.books ? 0 : book + 1) {
            T here, entry;
            memcpy(&here, input + v * P, sizeof here);
            for (int i = 0; i < ROWS; i++) {
                memcpy(&entry, tables.table + (code[i][v] + book * tables.entries) * P, sizeof entry);
                total[i] = added<P>(total[i], here, entry);
            }
        }
        for (int i = 0; i < ROWS; i++) sums[i] = total_of<P>(total[i]);
    }
};
