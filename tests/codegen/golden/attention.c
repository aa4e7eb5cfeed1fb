#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"


#if defined(__clang__)
#define HASTEN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HASTEN_UNROLL _Pragma("GCC unroll 64")
#endif

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
static inline int64_t min_int64_t(int64_t a, int64_t b) { return a > b ? b : a; }
static inline int64_t floordiv_int64_t(int64_t a, int64_t b) { if (b == 0) return 0; const int64_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline f32x8 max_f32x8(f32x8 a, f32x8 b) { const i32x8 w = (i32x8)((a < b) | (b != b)); return (f32x8)((w & (i32x8)b) | (~w & (i32x8)a)); }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline float max_float(float a, float b) { return a < b || b != b ? b : a; }
static inline float total_max_f32x8(f32x8 vector) {
    float v[8];
    memcpy(v, &vector, sizeof v);
    for (int half = 4; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) v[l] = v[l] < v[l + half] || v[l + half] != v[l + half] ? v[l + half] : v[l];
    return v[0];
}
static inline f32x8 select_f32x8(i32x8 m, f32x8 a, f32x8 b) { const i32x8 w = m; return (f32x8)((w & (i32x8)a) | (~w & (i32x8)b)); }
static inline f32x8 bitcast_i32x8(i32x8 x) { f32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 bitcast_f32x8(f32x8 x) { i32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 splat_i32x8(int32_t x) { return x - (i32x8){0}; }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline float bitcast_int32_t(int32_t x) { float y; memcpy(&y, &x, sizeof y); return y; }
static inline int32_t bitcast_float(float x) { int32_t y; memcpy(&y, &x, sizeof y); return y; }
static inline float total_sum_f32x8(f32x8 vector) {
    float v[8];
    memcpy(v, &vector, sizeof v);
    for (int half = 4; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) v[l] = v[l] + v[l + half];
    return v[0];
}

static inline f32x8 hasten_exp_nonpositive_f32x8(f32x8 x) {
    const f32x8 t0 = select_f32x8((i32x8)(x < splat_f32x8(-87.99503462630605f)), splat_f32x8(-87.99503462630605f), x);
    const f32x8 t1 = t0 * 1.44269504f + 12583039.0f;
    const f32x8 t2 = t1 - 12583039.0f;
    const f32x8 t3 = t0 - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    return (((((0.008312405f * t3 + 0.041890983f) * t3 + 0.16667119f) * t3 + 0.49999225f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_i32x8(bitcast_f32x8(t1) << splat_i32x8(23));
}

static inline float hasten_exp_nonpositive_float(float x) {
    const float t0 = (x < -87.99503462630605f ? -87.99503462630605f : x);
    const float t1 = t0 * 1.44269504f + 12583039.0f;
    const float t2 = t1 - 12583039.0f;
    const float t3 = t0 - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    return (((((0.008312405f * t3 + 0.041890983f) * t3 + 0.16667119f) * t3 + 0.49999225f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_int32_t(bitcast_float(t1) << 23);
}



/* Attention 'y' */
void attention_0(const float *restrict k, const float *restrict q, const uint8_t *restrict mask0, const float
        *restrict v, float *restrict out, float *restrict scratch, int64_t size_b, int64_t size_s, int64_t
        size_t, hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    /* threads take whole heads if there are enough, else stretches of queries */
    const uint8_t many_heads = (int64_t)threads <= size_b * 2;
    const int64_t first_row = (many_heads ? 0 : min_int64_t((int64_t)thread * ((size_s + 5) / 6) / (int64_t)threads * 6, size_s));
    const int64_t last_row = (many_heads ? size_s : min_int64_t(((int64_t)thread * ((size_s + 5) / 6) + (size_s + 5) / 6) / (int64_t)threads * 6, size_s));
    const int64_t pitch = (size_t + 31) / 32 * 32;
    const float *table[6];
    float tile[192] __attribute__((aligned(64)));
    float total[6] __attribute__((aligned(64)));
    for (int64_t task = (many_heads ? size_b * ((int64_t)thread * 2) / (int64_t)threads : 0); task < (many_heads ? (size_b * 2 + size_b * ((int64_t)thread * 2)) / (int64_t)threads : size_b * 2); ++task) {
        const int64_t b = task / 2;
        const int64_t h = task % 2;
        /* keys, transposed into panels */
        for (int64_t panel = 0; panel < floordiv_int64_t(pitch, 32); ++panel) {
            for (int64_t j = 0; j < 32; ++j) {
                for (int64_t d = 0; d < 32; ++d) {
                    scratch[d * 32 + j + panel * 1024 + pitch * 6] = (j + panel * 32 < size_t ? k[b * (size_t * 64) + d + h * 32 + j * 64 + panel * 2048] : 0.0f);
                }
            }
        }
        for (int64_t block = first_row; block < last_row; block += 6) {
            const int64_t m = min_int64_t(last_row - block, 6);
            for (int64_t r = 0; r < 6; ++r) {
                table[r] = q + b * (size_s * 64) + block * 64 + h * 32 + min_int64_t(r, m - 1) * 64;
            }
            /* scores */
            for (int64_t panel = 0; panel < floordiv_int64_t(pitch, 32); ++panel) {
                for (int64_t column = 0; column < 32; column += 16) {
                    tile_rows_x16(m, table, 6, 1, 32, scratch + column + panel * 1024 + pitch * 6, 32, scratch + panel * 1024 + pitch * 6 + 512, 32, tile + column);
                }
                const int64_t width = min_int64_t(size_t - panel * 32, 32);
                for (int64_t r = 0; r < m; ++r) {
                    for (int64_t j = 0; j < width; ++j) {
                        scratch[j + panel * 32 + pitch * r] = ((mask0[b * size_t + j + panel * 32] != 0) ? tile[j + r * 32] * 0.17677669529663687f : -INFINITY);
                    }
                }
            }
            /* softmax, not yet divided by its sum */
            for (int64_t r = 0; r < m; ++r) {
                f32x8 max_lanes1 = splat_f32x8(-INFINITY);
                float max_tail3 = -INFINITY;
                for (int64_t t_0 = 0; t_0 < size_t / 8 * 8; t_0 += 8) {
                    max_lanes1 = max_f32x8(max_lanes1, load_f32x8(scratch + pitch * r + t_0));
                }
                for (int64_t t_0 = size_t / 8 * 8; t_0 < size_t; ++t_0) {
                    max_tail3 = max_float(max_tail3, scratch[pitch * r + t_0]);
                }
                const float max2 = max_float(total_max_f32x8(max_lanes1), max_tail3);
                const float shift = (max2 == -INFINITY ? 0.0f : max2);
                const int64_t whole4 = size_t / 8 * 8;
                for (int64_t j_5 = 0; j_5 < whole4; j_5 += 8) {
                    store_f32x8(scratch + j_5 + pitch * r, hasten_exp_nonpositive_f32x8(load_f32x8(scratch + j_5 + pitch * r) - shift));
                }
                for (int64_t j = whole4; j < size_t; ++j) {
                    scratch[j + pitch * r] = hasten_exp_nonpositive_float(scratch[j + pitch * r] - shift);
                }
                f32x8 sum_lanes7 = splat_f32x8(0.0f);
                float sum_tail9 = 0.0f;
                for (int64_t t_6 = 0; t_6 < size_t / 8 * 8; t_6 += 8) {
                    sum_lanes7 = sum_lanes7 + load_f32x8(scratch + pitch * r + t_6);
                }
                for (int64_t t_6 = size_t / 8 * 8; t_6 < size_t; ++t_6) {
                    sum_tail9 = sum_tail9 + scratch[pitch * r + t_6];
                }
                const float sum8 = total_sum_f32x8(sum_lanes7) + sum_tail9;
                total[r] = (max2 == -INFINITY ? 0.0f : 1.0f / sum8);
            }
            /* weighted sum of the values */
            for (int64_t r = 0; r < 6; ++r) {
                table[r] = scratch + min_int64_t(r, m - 1) * pitch;
            }
            for (int64_t panel = 0; panel < 1; ++panel) {
                const int64_t width = min_int64_t(32 - panel * 32, 32);
                for (int64_t column = 0; column < width; column += 16) {
                    tile_rows_x16(m, table, 6, 1, size_t, v + b * (size_t * 64) + column + h * 32 + panel * 32, 64, v + b * (size_t * 64) + h * 32 + panel * 32 + 1024, 64, tile + column);
                }
                for (int64_t r = 0; r < m; ++r) {
                    const int64_t whole10 = width / 8 * 8;
                    for (int64_t j_11 = 0; j_11 < whole10; j_11 += 8) {
                        store_f32x8(out + b * (size_s * 64) + block * 64 + h * 32 + j_11 + panel * 32 + r * 64, load_f32x8(tile + j_11 + r * 32) * total[r]);
                    }
                    for (int64_t j = whole10; j < width; ++j) {
                        out[b * (size_s * 64) + block * 64 + h * 32 + j + panel * 32 + r * 64] = tile[j + r * 32] * total[r];
                    }
                }
            }
        }
    }
}

/* Attention 'y' */
void map_1(const float *restrict x0, float *restrict out, int64_t size_b, int64_t size_s, hasten_fault *fault,
        int32_t kernel, int32_t thread, int32_t threads) {
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
