// Codebooks as tables of padded vectors, and the vectors that codes stand for.

#pragma once

#include "codebook_codes.h"

static inline void converted_to(const float *from, int64_t count, float *out) {
    memcpy(out, from, (size_t)count * 4);
}
static inline void converted_to(const float *from, int64_t count, Bfloat *out) {
    for (int64_t i = 0; i < count; i++) put(out + i, from[i]);
}

// The codebooks of a row as Number, each vector in `width` numbers: 1, 2, 4, 8 or 16.
template <class Number> class Tables {
    const BookPlan &plan;
    const void *books;
    int64_t found = -1;
    std::unique_ptr<Number[]> room;

  public:
    int width = 1;
    int64_t entries;  // of a codebook
    const Number *table;

    Tables(const BookPlan &plan, const void *books) : plan(plan), books(books), entries(1ll << plan.bits) {
        while (width < plan.size) width *= 2;
        room.reset(new Number[entries * plan.books * width + 64]());
        table = (const Number *)(((uintptr_t)room.get() + 63) & ~(uintptr_t)63);
    }
    // Whether these are others than those of the row before
    bool row(int64_t n) {
        if (n / plan.book_rows == found) return false;
        found = n / plan.book_rows;
        int64_t each = entries * plan.books, size = plan.size;
        float vector[16];
        for (int64_t i = 0; i < each; i++) {
            converted(plan.book_kind, nullptr, books, (found * each + i) * size, size, vector);
            converted_to(vector, size, (Number *)table + i * width);
        }
        return true;
    }
};

template <class T, int P> struct Vector {
    typedef T Type __attribute__((vector_size(sizeof(T) * P)));
};

// One code for each vector; vector `at` of the row is the first.
template <class Number, int P, class Code>
static inline void looked_up(const BookPlan &plan, const Tables<Number> &tables, const Code *code, int64_t at,
                             int64_t count, Number *__restrict out) {
    int64_t size = plan.size, book = plan.product ? at % plan.books : 0, step = plan.product ? 1 : 0;
    if (plan.books == 1 && size == P) {
        const Number *table = tables.table;
        int64_t i = 0;
        if constexpr (!WIDE && P * sizeof(Number) == 8) {  // a load each, and one store for all
            typedef double Four __attribute__((vector_size(32)));
            auto one = [&](int64_t at) {
                double pair;
                memcpy(&pair, table + (int64_t)code[at] * P, 8);
                return pair;
            };
            for (; i + 4 <= count; i += 4) {
                Four four = {one(i), one(i + 1), one(i + 2), one(i + 3)};
                memcpy(out + i * P, &four, sizeof four);
            }
        }
        for (; i < count; i++) memcpy(out + i * P, table + (int64_t)code[i] * P, P * sizeof(Number));
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        memcpy(out + i * size, tables.table + (book * tables.entries + code[i]) * P, P * sizeof(Number));
        book += step;
        if (book == plan.books) book = 0;
    }
}

// The sum of the vectors of all codebooks
template <int P, class Code>
static inline void summed(const BookPlan &plan, const Tables<float> &tables, const Code *code, int64_t count,
                          float *__restrict out) {
    typedef typename Vector<float, P>::Type T;
    const int64_t size = plan.size, books = plan.books, entries = tables.entries;
    const float *table = tables.table;
    if (books == 2 && size == P) {
        for (int64_t i = 0; i < count; i++) {
            T first, second;
            memcpy(&first, table + code[2 * i] * P, sizeof first);
            memcpy(&second, table + (entries + code[2 * i + 1]) * P, sizeof second);
            first += second;
            memcpy(out + i * P, &first, sizeof first);
        }
        return;
    }
    for (int64_t i = 0; i < count; i++, code += books) {
        T total, more;
        memcpy(&total, table + code[0] * P, sizeof total);
        for (int64_t b = 1; b < books; b++) {
            memcpy(&more, table + (b * tables.entries + code[b]) * P, sizeof more);
            total += more;
        }
        memcpy(out + i * size, &total, sizeof total);
    }
}

template <class Use> static inline void by_width(int width, Use use) {
    switch (width) {
        case 1: return use(std::integral_constant<int, 1>());
        case 2: return use(std::integral_constant<int, 2>());
        case 4: return use(std::integral_constant<int, 4>());
        case 8: return use(std::integral_constant<int, 8>());
        default: return use(std::integral_constant<int, 16>());
    }
}
