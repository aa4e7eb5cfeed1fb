#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"


#if defined(__clang__)
#define HASTEN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HASTEN_UNROLL _Pragma("GCC unroll 64")
#endif

typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x2 __attribute__((vector_size(8)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x2 __attribute__((vector_size(8)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));
static inline int64_t min_int64_t(int64_t a, int64_t b) { return a > b ? b : a; }
static inline int64_t floordiv_int64_t(int64_t a, int64_t b) { if (b == 0) return 0; const int64_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline f32x8 select_f32x8(i32x8 m, f32x8 a, f32x8 b) { const i32x8 w = m; return (f32x8)((w & (i32x8)a) | (~w & (i32x8)b)); }
static inline i32x8 load_boolx8(const uint8_t *p) { u8x8 v; memcpy(&v, p, sizeof v); return __builtin_convertvector(v, i32x8) != 0; }
static inline float total_peak_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = (f32x4)(((i32x4)(a4 < b4) & (i32x4)b4) | (~(i32x4)(a4 < b4) & (i32x4)a4));
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = (f32x2)(((i32x2)(a2 < b2) & (i32x2)b2) | (~(i32x2)(a2 < b2) & (i32x2)a2));
    return v2[0] < v2[1] ? v2[1] : v2[0];
}
static inline f32x8 bitcast_i32x8(i32x8 x) { f32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 bitcast_f32x8(f32x8 x) { i32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 splat_i32x8(int32_t x) { return x - (i32x8){0}; }
static inline float total_sum_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = a4 + b4;
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = a2 + b2;
    return v2[0] + v2[1];
}

static inline f32x8 hasten_exp_nonpositive_f32x8(f32x8 x) {
    const f32x8 t0 = select_f32x8((i32x8)(x < splat_f32x8(-87.99503462630605f)), splat_f32x8(-87.99503462630605f), x);
    const f32x8 t1 = t0 * 1.44269504f + 12583039.0f;
    const f32x8 t2 = t1 - 12583039.0f;
    const f32x8 t3 = t0 - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    return (((((0.008312405f * t3 + 0.041890983f) * t3 + 0.16667119f) * t3 + 0.49999225f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_i32x8(bitcast_f32x8(t1) << splat_i32x8(23));
}



/* Attention 'y' */
void attention_0(const float *restrict keys, const float *restrict values, const float *restrict queries,
        const uint8_t *restrict mask0, float *restrict out, float *restrict scratch, int64_t size_b, int64_t
        size_s, int64_t size_t, hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    /* threads take whole heads if there are enough, else stretches of queries */
    const uint8_t many_heads = (int64_t)threads <= size_b * 2;
    const int64_t first_row = (many_heads ? 0 : min_int64_t((int64_t)thread * ((size_s + 5) / 6) / (int64_t)threads * 6, size_s));
    const int64_t last_row = (many_heads ? size_s : min_int64_t(((int64_t)thread * ((size_s + 5) / 6) + (size_s + 5) / 6) / (int64_t)threads * 6, size_s));
    const int64_t pitch = (size_t + 31) / 32 * 32;
    const float *table[8];
    float tile[192] __attribute__((aligned(64)));
    f32x8 peaks[6];
    f32x8 row_sums[6];
    float shift[6] __attribute__((aligned(64)));
    float total[6] __attribute__((aligned(64)));
    for (int64_t task = (many_heads ? size_b * ((int64_t)thread * 2) / (int64_t)threads : 0); task < (many_heads ? (size_b * 2 + size_b * ((int64_t)thread * 2)) / (int64_t)threads : size_b * 2); ++task) {
        const int64_t b = task / 2;
        const int64_t h = task % 2;
        /* keys, transposed into panels */
        for (int64_t panel = 0; panel < floordiv_int64_t(pitch, 32); ++panel) {
            for (int64_t j = 0; j < 32; j += 8) {
                for (int64_t i = 0; i < 8; ++i) {
                    table[i] = keys + b * (size_t * 64) + h * 32 + min_int64_t(i + j + panel * 32, size_t - 1) * 64;
                }
                for (int64_t d = 0; d < 32; d += 8) {
                    transpose_8x8(table, d, scratch + d * 32 + j + panel * 1024 + pitch * 6, 32);
                }
            }
        }
        /* values, in panels */
        for (int64_t panel = 0; panel < 1; ++panel) {
            const int64_t width = min_int64_t(32 - panel * 32, 32);
            for (int64_t key = 0; key < size_t; ++key) {
                const int64_t whole0 = width / 8 * 8;
                for (int64_t j_1 = 0; j_1 < whole0; j_1 += 8) {
                    store_f32x8(scratch + j_1 + key * 32 + panel * (pitch * 32) + pitch * 38, load_f32x8(values + b * (size_t * 64) + h * 32 + j_1 + key * 64 + panel * 32));
                }
                for (int64_t j = whole0; j < width; ++j) {
                    scratch[j + key * 32 + panel * (pitch * 32) + pitch * 38] = values[b * (size_t * 64) + h * 32 + j + key * 64 + panel * 32];
                }
            }
        }
        for (int64_t block = first_row; block < last_row; block += 6) {
            const int64_t m = min_int64_t(last_row - block, 6);
            for (int64_t r = 0; r < 6; ++r) {
                table[r] = queries + b * (size_s * 64) + block * 64 + h * 32 + min_int64_t(r, m - 1) * 64;
            }
            /* scores, and the largest of each row */
            for (int64_t r = 0; r < 6; ++r) {
                peaks[r] = splat_f32x8(-INFINITY);
            }
            for (int64_t panel = 0; panel < floordiv_int64_t(pitch, 32); ++panel) {
                const int64_t width = min_int64_t(size_t - panel * 32, 32);
                if (m == 6 && width == 32) {
                    for (int64_t column = 0; column < 32; column += 16) {
                        f32x8 sums[1][6][2];
                        HASTEN_UNROLL
                        for (int64_t chain = 0; chain < 1; ++chain) {
                            HASTEN_UNROLL
                            for (int64_t r = 0; r < 6; ++r) {
                                HASTEN_UNROLL
                                for (int64_t v = 0; v < 2; ++v) {
                                    sums[chain][r][v] = splat_f32x8(0.0f);
                                }
                            }
                        }
                        for (int64_t tap = 0; tap < 1; ++tap) {
                            const float *row[6];
                            HASTEN_UNROLL
                            for (int64_t r = 0; r < 6; ++r) {
                                row[r] = table[r + tap * 6];
                            }
                            for (int64_t k = 0; k < 32; ++k) {
                                const int64_t at = k * 32 + tap * 1024;
                                f32x8 columns[2];
                                HASTEN_UNROLL
                                for (int64_t v = 0; v < 2; ++v) {
                                    columns[v] = load_f32x8(scratch + at + column + panel * 1024 + pitch * 6 + v * 8);
                                }
                                __builtin_prefetch(scratch + k * 32 + panel * 1024 + pitch * 6 + tap * 1024 + 512);
                                HASTEN_UNROLL
                                for (int64_t r = 0; r < 6; ++r) {
                                    HASTEN_UNROLL
                                    for (int64_t v = 0; v < 2; ++v) {
                                        sums[0][r][v] = sums[0][r][v] + row[r][k] * columns[v];
                                    }
                                }
                            }
                        }
                        HASTEN_UNROLL
                        for (int64_t r = 0; r < 6; ++r) {
                            HASTEN_UNROLL
                            for (int64_t v = 0; v < 2; ++v) {
                                const f32x8 scaled = sums[0][r][v] * 0.17677669529663687f;
                                const f32x8 score = select_f32x8(load_boolx8(mask0 + b * size_t + column + panel * 32 + v * 8), scaled, splat_f32x8(-INFINITY));
                                store_f32x8(scratch + column + panel * 32 + pitch * r + v * 8, score);
                                const f32x8 t0 = peaks[r];
                                peaks[r] = select_f32x8((i32x8)(t0 < score), score, t0);
                            }
                        }
                    }
                } else {
                    if (m == 1) {
                        few_rows_f32(1, table, 6, 1, 32, scratch + panel * 1024 + pitch * 6, 32, 0, 1, 0, scratch + panel * 32);
                    } else {
                        for (int64_t column = 0; column < width; column += 16) {
                            tile_rows_x16(m, table, 6, 1, 32, scratch + column + panel * 1024 + pitch * 6, 32, scratch + panel * 1024 + pitch * 6 + 512, 32, scratch + column + panel * 32, pitch);
                        }
                    }
                    for (int64_t r = 0; r < m; ++r) {
                        const int64_t whole = floordiv_int64_t(width, 8) * 8;
                        for (int64_t j = 0; j < whole; j += 8) {
                            const f32x8 scaled = load_f32x8(scratch + j + panel * 32 + pitch * r) * 0.17677669529663687f;
                            const f32x8 score = select_f32x8(load_boolx8(mask0 + b * size_t + j + panel * 32), scaled, splat_f32x8(-INFINITY));
                            store_f32x8(scratch + j + panel * 32 + pitch * r, score);
                            const f32x8 t1 = peaks[r];
                            peaks[r] = select_f32x8((i32x8)(t1 < score), score, t1);
                        }
                        for (int64_t j = whole; j < width; ++j) {
                            const float scaled = scratch[j + panel * 32 + pitch * r] * 0.17677669529663687f;
                            scratch[j + panel * 32 + pitch * r] = ((mask0[b * size_t + j + panel * 32] != 0) ? scaled : -INFINITY);
                        }
                        for (int64_t j = width; j < 32; ++j) {
                            scratch[j + panel * 32 + pitch * r] = -INFINITY;
                        }
                        for (int64_t j = whole; j < 32; j += 8) {
                            const f32x8 t2 = peaks[r];
                            const f32x8 t3 = load_f32x8(scratch + j + panel * 32 + pitch * r);
                            peaks[r] = select_f32x8((i32x8)(t2 < t3), t3, t2);
                        }
                    }
                }
            }
            /* softmax, not yet divided by its sum */
            for (int64_t r = 0; r < m; ++r) {
                const float peak = total_peak_f32x8(peaks[r]);
                shift[r] = (peak == -INFINITY ? 0.0f : peak);
            }
            for (int64_t r = 0; r < m; ++r) {
                const float by = shift[r];
                f32x8 sums[4];
                HASTEN_UNROLL
                for (int64_t v = 0; v < 4; ++v) {
                    sums[v] = splat_f32x8(0.0f);
                }
                for (int64_t t = 0; t < pitch; t += 32) {
                    HASTEN_UNROLL
                    for (int64_t v = 0; v < 4; ++v) {
                        const f32x8 weight = hasten_exp_nonpositive_f32x8(load_f32x8(scratch + pitch * r + t + v * 8) - by);
                        store_f32x8(scratch + pitch * r + t + v * 8, weight);
                        sums[v] = sums[v] + weight;
                    }
                }
                row_sums[r] = sums[0] + sums[2] + (sums[1] + sums[3]);
            }
            for (int64_t r = 0; r < m; ++r) {
                const float sum = total_sum_f32x8(row_sums[r]);
                total[r] = (sum == 0.0f ? 0.0f : 1.0f / sum);
            }
            /* weighted sum of the values */
            for (int64_t r = 0; r < 6; ++r) {
                table[r] = scratch + min_int64_t(r, m - 1) * pitch;
            }
            for (int64_t panel = 0; panel < 1; ++panel) {
                const int64_t width = min_int64_t(32 - panel * 32, 32);
                if (m == 1) {
                    few_rows_f32(1, table, 6, 1, size_t, scratch + panel * (pitch * 32) + pitch * 38, 32, 0, 1, 0, tile);
                } else {
                    for (int64_t column = 0; column < width; column += 16) {
                        tile_rows_x16(m, table, 6, 1, size_t, scratch + column + panel * (pitch * 32) + pitch * 38, 32, scratch + panel * (pitch * 32) + pitch * 38 + 512, 32, tile + column, 32);
                    }
                }
                for (int64_t r = 0; r < m; ++r) {
                    const int64_t whole2 = width / 8 * 8;
                    for (int64_t j_3 = 0; j_3 < whole2; j_3 += 8) {
                        store_f32x8(out + b * (size_s * 64) + block * 64 + h * 32 + j_3 + panel * 32 + r * 64, load_f32x8(tile + j_3 + r * 32) * total[r]);
                    }
                    for (int64_t j = whole2; j < width; ++j) {
                        out[b * (size_s * 64) + block * 64 + h * 32 + j + panel * 32 + r * 64] = tile[j + r * 32] * total[r];
                    }
                }
            }
        }
    }
}

/* Attention 'y' */
void map_1(const float *x0, float *out, int64_t size_b, int64_t size_s, hasten_fault *fault, int32_t kernel,
        int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    const int64_t first = min_int64_t(size_b * ((int64_t)thread * size_s) / (int64_t)threads * 64, size_b * (size_s * 64));
    const int64_t last = min_int64_t((size_b * ((int64_t)thread * size_s) + size_b * size_s) / (int64_t)threads * 64, size_b * (size_s * 64));
    const int64_t whole0 = first + (last - first) / 8 * 8;
    for (int64_t bsc_1 = first; bsc_1 < whole0; bsc_1 += 8) {
        store_f32x8(out + bsc_1, load_f32x8(x0 + bsc_1));
    }
    for (int64_t bsc = whole0; bsc < last; ++bsc) {
        out[bsc] = x0[bsc];
    }
}
