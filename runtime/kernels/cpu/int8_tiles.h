// Integer products for many rows of input: a tile of the weight is unpacked and turned once, so that four
// neighbouring columns of 16 rows lie in a vector, and multiplied with all rows of the input.

#pragma once

#include "int8_decode.h"

#ifdef DOTS

static inline INLINE void turned(__m512i *v) {  // 16 rows of 16 words: word i of all rows in vector i
    __m512i t[16];
    each<8>([&](auto i) INLINE {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    });
    each<8>([&](auto k) INLINE {
        constexpr int i = k / 2, j = k % 2;
        v[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        v[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    });
    each<8>([&](auto k) INLINE {
        constexpr int i = k / 4, j = k % 4;
        t[8 * i + j] = _mm512_shuffle_i32x4(v[8 * i + j], v[8 * i + 4 + j], 0x88);
        t[8 * i + 4 + j] = _mm512_shuffle_i32x4(v[8 * i + j], v[8 * i + 4 + j], 0xdd);
    });
    each<8>([&](auto i) INLINE {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    });
}

template <int D, bool CENTERS, bool GROUPED> class Tiles {  // CENTERS: not the same for all, or with a half
    static constexpr int NB = 4, MR = 6, ACROSS = 16 * NB, TOGETHER = 512;
    const Product &p;
    const Weight &w;
    const Input &x;
    const Output &out;
    const Cut &cut;
    const Decoder<D> decode;
    Scales scales;
    const int64_t chunk;  // pieces
    const int64_t depth;  // columns that a tile has room for
    std::unique_ptr<float[]> scale, results;
    std::unique_ptr<int32_t[]> center;
    std::unique_ptr<uint8_t[]> room;
    uint8_t *tile;

  public:
    Tiles(const Product &p, const Weight &w, const Input &x, const Output &out, const Cut &cut)
        : p(p), w(w), x(x), out(out), cut(cut), decode(p), scales(p, w, cut),
          chunk(std::max((int64_t)1, TILE_COLUMNS / cut.piece)),
          depth(std::min(over(p.columns, STEP) * STEP, chunk * cut.piece + 2 * STEP)),
          scale(new float[cut.pieces * ACROSS]), results(new float[(TOGETHER + MR) * ACROSS]),
          center(new int32_t[cut.pieces * ACROSS]), room(new uint8_t[depth * ACROSS + 64]) {
        tile = (uint8_t *)(((uintptr_t)room.get() + 63) / 64 * 64);
    }

    void run(int64_t first, int64_t last) {
        for (int64_t m = 0; m < x.rows; m += TOGETHER) {
            int64_t end = std::min(m + TOGETHER, x.rows);
            for (int64_t n = first; n < last; n += ACROSS) {
                describe(n, last);
                for (int64_t piece = 0; piece < cut.pieces; piece += chunk) multiply(n, last, m, end, piece);
                for (int64_t i = m; i < end; i++)
                    finish(p, w, x, out, i, n, results.get() + (i - m) * ACROSS, std::min((int64_t)ACROSS, last - n));
            }
        }
    }

  private:
    void describe(int64_t n, int64_t last) {
        for (int r = 0; r < ACROSS; r++) {
            scales.row(std::min(n + r, last - 1));
            for (int64_t i = 0; i < cut.pieces; i++)
                scale[i * ACROSS + r] = scales.scale[i];
            for (int64_t i = 0; CENTERS && i < cut.pieces; i++) center[i * ACROSS + r] = scales.center[i];
        }
    }
    void multiply(int64_t n, int64_t last, int64_t m, int64_t end, int64_t piece) {
        int64_t stop = std::min(piece + chunk, cut.pieces);
        int64_t from = piece * cut.piece / STEP * STEP, to = std::min(stop * cut.piece, p.columns);
        fill(n, last, from / STEP, over(to, STEP));
        for (int64_t i = m; i < end; i += MR) {
            fetch(n, last, from / STEP, (i - m) / MR, over(end - m, MR));
            for (int64_t j = piece; j < stop; j++) block(i, end, j, from, results.get() + (i - m) * ACROSS);
        }
    }
    void fill(int64_t n, int64_t last, int64_t first, int64_t end) {
        for (int b = 0; b < NB; b++) {
            const uint8_t *from[16];
            for (int r = 0; r < 16; r++) from[r] = w.codes + std::min(n + 16 * b + r, last - 1) * p.row_bytes;
            const int64_t free = decode.free(from[15], w.codes + p.rows * p.row_bytes);
            for (int64_t at = first; at < end; at++) {
                __m512i v[16];
                if (at < free) each<16>([&](auto r) INLINE { v[r] = decode(from[r], at); });
                else each<16>([&](auto r) INLINE { v[r] = decode.careful(from[r], at); });
                turned(v);
                uint8_t *to = tile + (b * depth + (at - first) * STEP) * 16;
                each<16>([&](auto i) INLINE { _mm512_store_si512(to + 64 * i, v[i]); });
            }
        }
    }
    // Part `i` of `parts` of what the next tile is made of
    void fetch(int64_t n, int64_t last, int64_t first, int64_t i, int64_t parts) const {
        int64_t columns = std::min(depth, p.columns - first * STEP), bytes = columns * p.bits / 8;
        int64_t lines = over(bytes, 64), share = over(lines * ACROSS, parts);
        bool below = depth >= p.columns;
        for (int64_t j = i * share; j < (i + 1) * share && j < lines * ACROSS; j++) {
            int64_t row = n + j / lines + (below ? ACROSS : 0), at = first * decode.bytes + (below ? 0 : bytes);
            if (row < last) _mm_prefetch((const char *)w.codes + row * p.row_bytes + at + j % lines * 64, _MM_HINT_T1);
        }
    }
    // MR rows of the input with a piece of the tile; rows beyond the end are the last one again
    SEPARATE void block(int64_t m, int64_t end, int64_t piece, int64_t from, float *results) const {
        const int64_t at = piece * cut.piece, columns = std::min(cut.piece, over(p.columns - at, LANE) * LANE);
        const int8_t *q[MR];
        __m512i sums[MR * NB];
        for (int i = 0; i < MR; i++) q[i] = x.codes + std::min(m + i, end - 1) * p.stride + at;
        int32_t all[MR];
        for (int i = 0; i < MR; i++) all[i] = x.sums[std::min(m + i, end - 1) * cut.sums + piece];
        each<MR * NB>([&](auto i) INLINE {
            sums[i] = _mm512_set1_epi32(CENTERS ? all[i / NB] : all[i / NB] * p.center);
            const int32_t *by = center.get() + piece * ACROSS + 16 * (i % NB);
            if constexpr (CENTERS) sums[i] = _mm512_mullo_epi32(sums[i], _mm512_loadu_si512(by));
        });
        const uint8_t *u = tile + (at - from) * 16;
        for (int64_t k = 0; k < columns; k += LANE) {
            __m512i v[NB];
            each<NB>([&](auto b) INLINE { v[b] = _mm512_load_si512(u + b * depth * 16 + k * 16); });
            each<MR>([&](auto i) INLINE {
                int32_t four;
                memcpy(&four, q[i] + k, 4);
                __m512i same = _mm512_set1_epi32(four);
                each<NB>([&](auto b) INLINE { sums[i * NB + b] = dot(sums[i * NB + b], v[b], same); });
            });
        }
        each<MR * NB>([&](auto i) INLINE {
            const int64_t row = std::min(m + i / NB, end - 1);
            __m512 sum = _mm512_cvtepi32_ps(sums[i]), by = _mm512_loadu_ps(scale.get() + piece * ACROSS + 16 * (i % NB));
            if constexpr (CENTERS) sum = _mm512_add_ps(sum, _mm512_set1_ps(p.half * (float)all[i / NB]));
            if constexpr (GROUPED)
                by = _mm512_mul_ps(by, _mm512_set1_ps(x.scales[row * p.input_scales + at / p.input_columns]));
            float *to = results + i / NB * ACROSS + 16 * (i % NB);
            __m512 before = piece ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, by, before));
        });
    }
};

#endif
