#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"


#if defined(__clang__)
#define HASTEN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HASTEN_UNROLL _Pragma("GCC unroll 64")
#endif

typedef float f32x2 __attribute__((vector_size(8)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x2 __attribute__((vector_size(8)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline f32x8 max_f32x8(f32x8 a, f32x8 b) { const i32x8 w = (i32x8)(a < b); i32x8 v = (w & (i32x8)b) | (~w & (i32x8)a); const i32x8 n = (i32x8)(b != b); v = (n & (i32x8)b) | (~n & v); return (f32x8)v; }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline int64_t floordiv_int64_t(int64_t a, int64_t b) { if (b == 0) return 0; const int64_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
static inline float max_float(float a, float b) { return a < b || b != b ? b : a; }
static inline float total_max_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = (f32x4)(((i32x4)(b4 != b4) & (i32x4)b4) | (~(i32x4)(b4 != b4) & (((i32x4)(a4 < b4) & (i32x4)b4) | (~(i32x4)(a4 < b4) & (i32x4)a4))));
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = (f32x2)(((i32x2)(b2 != b2) & (i32x2)b2) | (~(i32x2)(b2 != b2) & (((i32x2)(a2 < b2) & (i32x2)b2) | (~(i32x2)(a2 < b2) & (i32x2)a2))));
    return v2[0] < v2[1] || v2[1] != v2[1] ? v2[1] : v2[0];
}
static inline f32x8 select_f32x8(i32x8 m, f32x8 a, f32x8 b) { const i32x8 w = m; return (f32x8)((w & (i32x8)a) | (~w & (i32x8)b)); }
static inline f32x8 bitcast_i32x8(i32x8 x) { f32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 bitcast_f32x8(f32x8 x) { i32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 splat_i32x8(int32_t x) { return x - (i32x8){0}; }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline float bitcast_int32_t(int32_t x) { float y; memcpy(&y, &x, sizeof y); return y; }
static inline int32_t bitcast_float(float x) { int32_t y; memcpy(&y, &x, sizeof y); return y; }
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

static inline float hasten_exp_nonpositive_float(float x) {
    const float t0 = (x < -87.99503462630605f ? -87.99503462630605f : x);
    const float t1 = t0 * 1.44269504f + 12583039.0f;
    const float t2 = t1 - 12583039.0f;
    const float t3 = t0 - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    return (((((0.008312405f * t3 + 0.041890983f) * t3 + 0.16667119f) * t3 + 0.49999225f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_int32_t(bitcast_float(t1) << 23);
}



/* Softmax 'y' */
void map_0(const float *x0, float *out, int64_t size_m, int64_t size_n, hasten_fault *fault, int32_t kernel,
        int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    for (int64_t task = (int64_t)thread * size_n / (int64_t)threads; task < ((int64_t)thread * size_n + size_n) / (int64_t)threads; ++task) {
        const int64_t i0 = task;
        f32x8 max_lanes2[8];
        HASTEN_UNROLL
        for (int64_t u3 = 0; u3 < 8; ++u3) {
            max_lanes2[u3] = splat_f32x8(-INFINITY);
        }
        f32x8 max_lanes5[2];
        HASTEN_UNROLL
        for (int64_t u6 = 0; u6 < 2; ++u6) {
            max_lanes5[u6] = splat_f32x8(-INFINITY);
        }
        float max_tail7 = -INFINITY;
        const int64_t whole1 = size_m / 64 * 64;
        for (int64_t m1_0 = 0; m1_0 < whole1; m1_0 += 64) {
            HASTEN_UNROLL
            for (int64_t u3 = 0; u3 < 8; ++u3) {
                max_lanes2[u3] = max_f32x8(max_lanes2[u3], load_f32x8(x0 + i0 * size_m + m1_0 + u3 * 8));
            }
        }
        const int64_t whole4 = floordiv_int64_t(size_m - whole1, 16) * 16 + whole1;
        for (int64_t m1_0 = whole1; m1_0 < whole4; m1_0 += 16) {
            HASTEN_UNROLL
            for (int64_t u6 = 0; u6 < 2; ++u6) {
                max_lanes5[u6] = max_f32x8(max_lanes5[u6], load_f32x8(x0 + i0 * size_m + m1_0 + u6 * 8));
            }
        }
        for (int64_t m1_0 = whole4; m1_0 < size_m; ++m1_0) {
            max_tail7 = max_float(max_tail7, x0[i0 * size_m + m1_0]);
        }
        const float max9 = max_float(total_max_f32x8(max_f32x8(max_f32x8(max_f32x8(max_f32x8(max_f32x8(max_lanes2[0], max_lanes2[2]), max_lanes2[4]), max_lanes2[6]), max_lanes5[0]), max_f32x8(max_f32x8(max_f32x8(max_f32x8(max_lanes2[1], max_lanes2[3]), max_lanes2[5]), max_lanes2[7]), max_lanes5[1]))), max_tail7);
        f32x8 sum_lanes12[2];
        HASTEN_UNROLL
        for (int64_t u13 = 0; u13 < 2; ++u13) {
            sum_lanes12[u13] = splat_f32x8(0.0f);
        }
        float sum_tail15 = 0.0f;
        const int64_t whole11 = size_m / 16 * 16;
        for (int64_t r1_10 = 0; r1_10 < whole11; r1_10 += 16) {
            HASTEN_UNROLL
            for (int64_t u13 = 0; u13 < 2; ++u13) {
                const f32x8 term14 = hasten_exp_nonpositive_f32x8(load_f32x8(x0 + i0 * size_m + r1_10 + u13 * 8) - max9);
                store_f32x8(out + i0 * size_m + r1_10 + u13 * 8, term14);
                sum_lanes12[u13] = sum_lanes12[u13] + term14;
            }
        }
        for (int64_t r1_10 = whole11; r1_10 < size_m; ++r1_10) {
            const float term17 = hasten_exp_nonpositive_float(x0[i0 * size_m + r1_10] - max9);
            out[i0 * size_m + r1_10] = term17;
            sum_tail15 = sum_tail15 + term17;
        }
        const float sum18 = total_sum_f32x8(sum_lanes12[0] + sum_lanes12[1]) + sum_tail15;
        const int64_t whole19 = size_m / 8 * 8;
        for (int64_t i1_20 = 0; i1_20 < whole19; i1_20 += 8) {
            store_f32x8(out + i0 * size_m + i1_20, load_f32x8(out + i0 * size_m + i1_20) * (1.0f / sum18));
        }
        for (int64_t i1 = whole19; i1 < size_m; ++i1) {
            out[i0 * size_m + i1] = out[i0 * size_m + i1] * (1.0f / sum18);
        }
    }
}
