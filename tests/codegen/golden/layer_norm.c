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
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline float total_sum_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = a4 + b4;
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = a2 + b2;
    return v2[0] + v2[1];
}
static inline float sqrt_float(float x) { return sqrtf(x); }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }




/* LayerNormalization 'y' */
void map_0(const float *x0, const float *restrict x1, const float *restrict x2, float *out, int64_t size_n,
        hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    for (int64_t task = (int64_t)thread * size_n / (int64_t)threads; task < ((int64_t)thread * size_n + size_n) / (int64_t)threads; ++task) {
        const int64_t i0 = task;
        f32x8 sum_lanes1 = splat_f32x8(0.0f);
        float sum_tail3 = 0.0f;
        for (int64_t m1_0 = 0; m1_0 < 96; m1_0 += 8) {
            sum_lanes1 = sum_lanes1 + load_f32x8(x0 + i0 * 100 + m1_0);
        }
        for (int64_t m1_0 = 96; m1_0 < 100; ++m1_0) {
            sum_tail3 = sum_tail3 + x0[i0 * 100 + m1_0];
        }
        const float sum2 = total_sum_f32x8(sum_lanes1) + sum_tail3;
        f32x8 sum_lanes5 = splat_f32x8(0.0f);
        float sum_tail7 = 0.0f;
        for (int64_t v1_4 = 0; v1_4 < 96; v1_4 += 8) {
            const f32x8 t0 = load_f32x8(x0 + i0 * 100 + v1_4) - sum2 / 100.0f;
            sum_lanes5 = sum_lanes5 + t0 * t0;
        }
        for (int64_t v1_4 = 96; v1_4 < 100; ++v1_4) {
            const float t1 = x0[i0 * 100 + v1_4] - sum2 / 100.0f;
            sum_tail7 = sum_tail7 + t1 * t1;
        }
        const float sum6 = total_sum_f32x8(sum_lanes5) + sum_tail7;
        for (int64_t i1_9 = 0; i1_9 < 96; i1_9 += 8) {
            store_f32x8(out + i0 * 100 + i1_9, (load_f32x8(x0 + i0 * 100 + i1_9) - sum2 / 100.0f) * (1.0f / sqrt_float(sum6 / 100.0f + 1e-05f)) * load_f32x8(x1 + i1_9) + load_f32x8(x2 + i1_9));
        }
        for (int64_t i1 = 96; i1 < 100; ++i1) {
            out[i0 * 100 + i1] = (x0[i0 * 100 + i1] - sum2 / 100.0f) * (1.0f / sqrt_float(sum6 / 100.0f + 1e-05f)) * x1[i1] + x2[i1];
        }
    }
}
