// A matrix of vectors from codebooks, as codebook_linear.py lays it out.

#pragma once

#include "decode_scalar.h"

struct BookPlan {
    int64_t rows, columns;              // of the matrix
    int64_t row_bytes, bytes;           // of the codes of a row, and of all
    int64_t vectors;                    // of a row
    int64_t book_rows;                  // rows that share codebooks
    int64_t share_columns, scale_columns, share_rows;  // as those of `Plan`
    int32_t bits, books;                // of a code; codebooks, and codes of a vector
    int32_t size;                       // numbers of a vector of one codebook
    int32_t product;                    // whether vectors of codebooks lie side by side, and are not summed
    int32_t book_kind, scale_kind;      // how numbers are stored
    int32_t e8p;                        // whether codes are those of E8P, and codebooks are their factors alone
    float unit;                         // what sums of rows are multiplied by at the end
};

enum { CODES_FIELD, SCALE_FIELD, BOOKS_FIELD };

// What there is to know of the scales
static inline Plan scalar_plan(const BookPlan &plan) {
    Plan found{};
    found.rows = plan.rows, found.columns = plan.columns;
    found.row_bytes = plan.row_bytes, found.bits = plan.bits;
    found.share_rows = plan.share_rows, found.share_columns = plan.share_columns;
    found.scale_columns = plan.scale_columns, found.scale_kind = plan.scale_kind;
    found.unit = 1;
    return found;
}

// The scales of rows, for decoders that multiply with them what they have decoded
class RowScales {
    Plan plan;
    Fields fields;
    Scales table;
    Spreader spread;
    int64_t at = -1;

  public:
    bool by_row;  // whether a row has one, so that it can be left to the end

    RowScales(const Plan &known, const void *scale)
        : plan(known), fields{nullptr, scale, nullptr, nullptr}, table(plan, fields), spread(plan),
          by_row(plan.scale_columns == 1) {}
    RowScales(const RowScales &) = delete;

    float factor(int64_t n) {
        if (!by_row) return 1;
        table.row(n);
        return table.scale[0];
    }
    // numbers from `first` on of row n, in place
    void scale(int64_t n, int64_t first, int64_t count, float *numbers) {
        table.row(n);
        if (at != n) spread.row(table.scale, plan.scale_columns);
        at = n;
        for (int64_t k = 0; k < count; k += W) {
            V factor;
            switch (spread.kind) {
                case CHUNKS: factor = spread.get<CHUNKS>(table.scale, first + k); break;
                case PARTS: factor = spread.get<PARTS>(table.scale, first + k); break;
                default: factor = spread.get<ANY>(table.scale, first + k);
            }
            store(numbers + k, load(numbers + k) * factor);
        }
    }
};
