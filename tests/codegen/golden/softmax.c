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
static inline f32x8 max_f32x8(f32x8 a, f32x8 b) { const i32x8 w = (i32x8)((a < b) | (b != b)); return (f32x8)((w & (i32x8)b) | (~w & (i32x8)a)); }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline float max_float(float a, float b) { return a < b || b != b ? b : a; }
static inline float total_max_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = (f32x4)((((i32x4)(a4 < b4) | (i32x4)(b4 != b4)) & (i32x4)b4) | (~((i32x4)(a4 < b4) | (i32x4)(b4 != b4)) & (i32x4)a4));
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = (f32x2)((((i32x2)(a2 < b2) | (i32x2)(b2 != b2)) & (i32x2)b2) | (~((i32x2)(a2 < b2) | (i32x2)(b2 != b2)) & (i32x2)a2));
    return v2[0] < v2[1] || v2[1] != v2[1] ? v2[1] : v2[0];
}
static inline f32x8 select_f32x8(i32x8 m, f32x8 a, f32x8 b) { const i32x8 w = m; return (f32x8)((w & (i32x8)a) | (~w & (i32x8)b)); }
static inline i32x8 bitcast_f32x8(f32x8 x) { i32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 splat_i32x8(int32_t x) { return x - (i32x8){0}; }
static inline f32x8 bitcast_i32x8(i32x8 x) { f32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline int32_t bitcast_float(float x) { int32_t y; memcpy(&y, &x, sizeof y); return y; }
static inline float bitcast_int32_t(int32_t x) { float y; memcpy(&y, &x, sizeof y); return y; }
static inline float total_sum_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = a4 + b4;
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = a2 + b2;
    return v2[0] + v2[1];
}
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }

static inline f32x8 hasten_exp_f32x8(f32x8 x) {
    const f32x8 t0 = select_f32x8((i32x8)(splat_f32x8(89.0f) < x), splat_f32x8(89.0f), x);
    const f32x8 t1 = select_f32x8((i32x8)(t0 < splat_f32x8(-104.0f)), splat_f32x8(-104.0f), t0);
    const f32x8 t2 = t1 * 1.44269504f + 12583166.0f;
    const f32x8 t3 = t2 - 12583166.0f;
    const f32x8 t4 = t1 - t3 * 0.693145751953125f - t3 * 1.4286068203094173e-06f;
    const i32x8 t5 = bitcast_f32x8(t2);
    const i32x8 t6 = t5 >> splat_i32x8(1);
    return ((((((0.0013814322f * t4 + 0.008368851f) * t4 + 0.0416684f) * t4 + 0.1666652f) * t4 + 0.49999994f) * t4 + 1.0f) * t4 + 1.0f) * bitcast_i32x8(t6 << splat_i32x8(23)) * bitcast_i32x8((t5 - t6) << splat_i32x8(23));
}

static inline float hasten_exp_float(float x) {
    const float t0 = ((89.0f < x ? 89.0f : x) < -104.0f ? -104.0f : (89.0f < x ? 89.0f : x));
    const float t1 = t0 * 1.44269504f + 12583166.0f;
    const float t2 = t1 - 12583166.0f;
    const float t3 = t0 - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    const int32_t t4 = bitcast_float(t1);
    const int32_t t5 = t4 >> 1;
    return ((((((0.0013814322f * t3 + 0.008368851f) * t3 + 0.0416684f) * t3 + 0.1666652f) * t3 + 0.49999994f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_int32_t(t5 << 23) * bitcast_int32_t((t4 - t5) << 23);
}



/* Softmax 'y' */
void map_0(const float *x0, float *out, int64_t size_m, int64_t size_n, hasten_fault *fault, int32_t kernel,
        int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    for (int64_t task = (int64_t)thread * size_n / (int64_t)threads; task < ((int64_t)thread * size_n + size_n) / (int64_t)threads; ++task) {
        const int64_t i0 = task;
        f32x8 max_lanes1 = splat_f32x8(-INFINITY);
        float max_tail3 = -INFINITY;
        for (int64_t m1_0 = 0; m1_0 < size_m / 8 * 8; m1_0 += 8) {
            max_lanes1 = max_f32x8(max_lanes1, load_f32x8(x0 + i0 * size_m + m1_0));
        }
        for (int64_t m1_0 = size_m / 8 * 8; m1_0 < size_m; ++m1_0) {
            max_tail3 = max_float(max_tail3, x0[i0 * size_m + m1_0]);
        }
        const float max2 = max_float(total_max_f32x8(max_lanes1), max_tail3);
        f32x8 sum_lanes5 = splat_f32x8(0.0f);
        float sum_tail7 = 0.0f;
        for (int64_t r1_4 = 0; r1_4 < size_m / 8 * 8; r1_4 += 8) {
            sum_lanes5 = sum_lanes5 + hasten_exp_f32x8(load_f32x8(x0 + i0 * size_m + r1_4) - max2);
        }
        for (int64_t r1_4 = size_m / 8 * 8; r1_4 < size_m; ++r1_4) {
            sum_tail7 = sum_tail7 + hasten_exp_float(x0[i0 * size_m + r1_4] - max2);
        }
        const float sum6 = total_sum_f32x8(sum_lanes5) + sum_tail7;
        const int64_t whole8 = size_m / 8 * 8;
        for (int64_t i1_9 = 0; i1_9 < whole8; i1_9 += 8) {
            store_f32x8(out + i0 * size_m + i1_9, hasten_exp_f32x8(load_f32x8(x0 + i0 * size_m + i1_9) - max2) / sum6);
        }
        for (int64_t i1 = whole8; i1 < size_m; ++i1) {
            out[i0 * size_m + i1] = hasten_exp_float(x0[i0 * size_m + i1] - max2) / sum6;
        }
    }
}
