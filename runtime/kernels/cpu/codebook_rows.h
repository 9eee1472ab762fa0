// The decoder of matrices of vectors from codebooks.

#pragma once

#include "codebook_e8p.h"
#include "codebook_planes.h"
#include "streamed.h"

#if !WIDE
// Where sums are computed: where they are asked for, if that is in float32 and they fit
class Sums {
    std::unique_ptr<float[]> room;
    float *here = nullptr;

  public:
    void reset(float *made) { room.reset(made); }
    void to(float *out, bool fits) { here = fits ? out : room.get(); }
    void to(Bfloat *, bool) { here = room.get(); }
    float *get() const { return here; }
};
#endif

template <class Number> class BookRows {
    static constexpr bool WORDS = std::is_same<Number, Bfloat>::value;
    static constexpr int64_t MARGIN = 4 * CHUNK;

    const BookPlan &plan;
    const uint8_t *codes;
    const float *factors;  // of E8P
    RowScales scales;
    Indices indices;
    bool plain;  // whether vectors are handed over as the codebook has them
    std::unique_ptr<Tables<Number>> tables;
    std::unique_ptr<Tables<float>> exact;  // for sums
#if !WIDE
    std::unique_ptr<FloatPoints> points;
    std::unique_ptr<float[]> times;  // of points
#else
    std::unique_ptr<Points> points;
    std::unique_ptr<Planes<1>> ones;
    std::unique_ptr<Planes<2>> pairs;
    std::unique_ptr<Planes<4>> fours;
#endif
#if WIDE
    std::unique_ptr<float[]> sums;
#else
    Sums sums;
#endif
    std::unique_ptr<Number[]> vectors;
#if WIDE
    std::unique_ptr<int8_t[]> small;
    std::unique_ptr<uint16_t[]> of_book;
#endif

  public:
    BookRows(const BookPlan &plan, const void *const *fields)
        : plan(plan), codes((const uint8_t *)fields[CODES_FIELD]), factors((const float *)fields[BOOKS_FIELD]),
          scales(scalar_plan(plan), fields[SCALE_FIELD]), indices(plan, codes) {
        int64_t most = padded(plan.columns) + 2 * MARGIN;
        plain = scales.by_row && (plan.books == 1 || plan.product);
        if (plan.e8p) {
#if WIDE
            points.reset(new Points), small.reset(new int8_t[most + 8 * CHUNK]);
            of_book.reset(new uint16_t[plan.vectors + CHUNK]);
#else
            points.reset(new FloatPoints), times.reset(new float[plan.books]);
            for (int64_t b = 0; b < plan.books; b++) times[b] = plan.books == 1 && plain ? 1 : factors[b] / 4;
#endif
        } else if (plain) {
            tables.reset(new Tables<Number>(plan, fields[BOOKS_FIELD])), vectors.reset(new Number[most]);
        } else {
            exact.reset(new Tables<float>(plan, fields[BOOKS_FIELD]));
        }
        if (!plain || plan.e8p) sums.reset(new float[most]);
#if WIDE
        if (WORDS && plain && !plan.e8p && plan.books == 1 && plan.bits <= 8) {
            if (plan.size == 1) ones.reset(new Planes<1>(plan));
            if (plan.size == 2) pairs.reset(new Planes<2>(plan));
            if (plan.size == 4 && plan.bits == 8) fours.reset(new Planes<4>(plan));
        }
#endif
    }
    float factor(int64_t n) { return scales.factor(n) * plan.unit; }
    bool scaled() const { return plan.unit != 1 || (plan.scale_kind && scales.by_row); }

    void fill(int64_t n, int64_t first, int64_t count, Number *out) {
        if (plan.e8p) return e8p(n, first, count, out);
        if (!plain) return total(n, first, count, out);
        bool changed = tables->row(n);
#if WIDE
        if constexpr (WORDS) {
            if (ones) return in_registers(*ones, 1, changed, n, first, count, out);
            if (pairs) return in_registers(*pairs, 2, changed, n, first, count, out);
            if (fours) return in_registers(*fours, 4, changed, n, first, count, out);
        }
#endif
        (void)changed;
        Span span(plan, first, count);
        bool fits = plan.size == tables->width && !span.skipped && span.numbers == count;
        Number *to = fits ? out : vectors.get();
        with_codes(n, span.from, span.to, [&](const auto *code) {
            by_width(tables->width, [&](auto width) {
                looked_up<Number, decltype(width)::value>(plan, *tables, code, span.from, span.to - span.from, to);
            });
        });
        if (!fits) moved(vectors.get(), span, count, out);
    }

  private:
    // The vectors in which numbers `first` to `first + count` of a row lie
    struct Span {
        int64_t from, to, skipped, numbers;

        Span(const BookPlan &plan, int64_t first, int64_t count) {
            int64_t all = plan.product ? plan.vectors * plan.books : plan.vectors;
            from = std::min(first / plan.size, all), to = std::min((first + count + plan.size - 1) / plan.size, all);
            skipped = first - from * plan.size, numbers = std::max<int64_t>(0, (to - from) * plan.size - skipped);
        }
    };

    // Codes `from` to `to` of a row, as they are where they are bytes
    template <class Use> void with_codes(int64_t n, int64_t from, int64_t to, Use use) {
        if (plan.bits != 8) return use(indices.get(n, from, to));
        const uint8_t *row = codes + n * plan.row_bytes + from;
        soon(row, to - from);
        use(row);
    }
    static void moved(const Number *from, const Span &span, int64_t count, Number *out) {
        int64_t there = std::min(count, span.numbers);
        memcpy(out, from + span.skipped, (size_t)there * sizeof(Number));
        std::fill(out + there, out + count, Number(0));
    }
    void total(int64_t n, int64_t first, int64_t count, Number *out) {
        exact->row(n);
        Span span(plan, first, count);
        int64_t each = plan.product ? 1 : plan.books;
#if !WIDE
        sums.to(out, !span.skipped && span.numbers <= count);
#endif
        with_codes(n, span.from * each, span.to * each, [&](const auto *code) {
            by_width(exact->width, [&](auto width) {
                constexpr int P = decltype(width)::value;
                if (each == 1)
                    looked_up<float, P>(plan, *exact, code, span.from, span.to - span.from, sums.get());
                else
                    summed<P>(plan, *exact, code, span.to - span.from, sums.get());
            });
        });
        finished(n, first, count, span, out);
    }
    void finished(int64_t n, int64_t first, int64_t count, const Span &span, Number *out) {
        float *from = sums.get() + span.skipped;
        std::fill(from + std::min(count, span.numbers), from + count, 0.0f);
        if (!scales.by_row) scales.scale(n, first, count, from);
        if constexpr (!WIDE && !WORDS)
            if (from == out) return;
        narrowed(from, count, out);
    }
    void e8p(int64_t n, int64_t first, int64_t count, Number *out) {
        Span span(plan, first, count);
        int64_t each = plan.product ? 1 : plan.books, some = span.to - span.from;
        const uint16_t *code = indices.get(n, span.from * each, span.to * each);
#if WIDE
        if (plan.books == 1 && plain) {
            points->get(code, some, small.get());
            whole_numbers(some * 8, out);
            return std::fill(out + some * 8, out + count, Number(0));
        }
        for (int64_t b = 0; b < each; b++) {
            const uint16_t *part = code;
            if (each > 1) part = of_one(code, each, b, some, of_book.get());
            points->get(part, some, small.get());
            add_points(some * 8, factors[b] / 4, b == 0);
        }
#else
        sums.to(out, true);
        points->get(code, each, times.get(), some, sums.get());
#endif
        finished(n, first, count, span, out);
    }
#if WIDE
    void add_points(int64_t count, float factor, bool first) {
        float *to = sums.get();
        const int8_t *from = small.get();
        V times = splat(factor);
        for (int64_t i = 0; i < count; i += W) {  // there is room after the last
            V value = (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i))));
            store(to + i, first ? value * times : fused(value, times, load(to + i)));
        }
    }
    void whole_numbers(int64_t count, float *out) const {
        for (int64_t i = 0; i < count; i++) out[i] = small[i];
    }
    void whole_numbers(int64_t count, Bfloat *out) const {
        Bfloat known[32];
        for (int i = 0; i < 32; i++) put(known + i, (float)(i < 16 ? i : i - 32));
        __m512i table = _mm512_loadu_si512(known);
        for (int64_t i = 0; i < count / 32 * 32; i += 32) {
            __m512i index = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(small.get() + i)));
            _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(index, table));
        }
        for (int64_t i = count / 32 * 32; i < count; i++) put(out + i, (float)small[i]);
    }
    template <class Planes>
    void in_registers(Planes &planes, int64_t size, bool changed, int64_t n, int64_t first, int64_t count, Bfloat *out) {
        if (changed) planes.take(*tables);
        int64_t each = CHUNK * size, bytes = 8 * plan.bits;  // of 64 codes
        const uint8_t *row = codes + n * plan.row_bytes + first / each * bytes, *end = codes + plan.bytes;
        soon(row, count / each * bytes);
        int64_t skipped = first % each, whole = skipped ? 0 : count / each, done = whole * each;
        planes.get(row, end - row, whole, out);
        if (done == count) return;  // or else numbers that begin or end in the middle
        Bfloat *room = vectors.get();
        int64_t blocks = (skipped + count - done + each - 1) / each;
        planes.get(row + whole * bytes, end - row - whole * bytes, blocks, room);
        memcpy(out + done, room + skipped, (size_t)(count - done) * 2);
    }
#endif
};
