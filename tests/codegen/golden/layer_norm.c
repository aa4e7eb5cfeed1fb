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
static inline f32x4 splat_f32x4(float x) { return x - (f32x4){0}; }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline f32x4 load_f32x4(const float *p) { f32x4 v; memcpy(&v, p, sizeof v); return v; }
static inline float total_sum_f32x8(f32x8 v8) {
    f32x4 a4, b4;
    memcpy(&a4, &v8, sizeof a4), memcpy(&b4, (const float *)&v8 + 4, sizeof b4);
    const f32x4 v4 = a4 + b4;
    f32x2 a2, b2;
    memcpy(&a2, &v4, sizeof a2), memcpy(&b2, (const float *)&v4 + 2, sizeof b2);
    const f32x2 v2 = a2 + b2;
    return v2[0] + v2[1];
}
static inline float total_sum_f32x4(f32x4 v4) {
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
        f32x8 sum_lanes1[8];
        HASTEN_UNROLL
        for (int64_t u2 = 0; u2 < 8; ++u2) {
            sum_lanes1[u2] = splat_f32x8(0.0f);
        }
        f32x8 sum_lanes3[2];
        HASTEN_UNROLL
        for (int64_t u4 = 0; u4 < 2; ++u4) {
            sum_lanes3[u4] = splat_f32x8(0.0f);
        }
        f32x4 sum_lanes5 = splat_f32x4(0.0f);
        for (int64_t m1_0 = 0; m1_0 < 64; m1_0 += 64) {
            HASTEN_UNROLL
            for (int64_t u2 = 0; u2 < 8; ++u2) {
                sum_lanes1[u2] = sum_lanes1[u2] + load_f32x8(x0 + i0 * 100 + m1_0 + u2 * 8);
            }
        }
        for (int64_t m1_0 = 64; m1_0 < 96; m1_0 += 16) {
            HASTEN_UNROLL
            for (int64_t u4 = 0; u4 < 2; ++u4) {
                sum_lanes3[u4] = sum_lanes3[u4] + load_f32x8(x0 + i0 * 100 + m1_0 + u4 * 8);
            }
        }
        for (int64_t m1_0 = 96; m1_0 < 100; m1_0 += 4) {
            sum_lanes5 = sum_lanes5 + load_f32x4(x0 + i0 * 100 + m1_0);
        }
        const float sum7 = total_sum_f32x8(sum_lanes1[0] + sum_lanes1[2] + sum_lanes1[4] + sum_lanes1[6] + sum_lanes3[0] + (sum_lanes1[1] + sum_lanes1[3] + sum_lanes1[5] + sum_lanes1[7] + sum_lanes3[1])) + total_sum_f32x4(sum_lanes5);
        f32x8 sum_lanes9[8];
        HASTEN_UNROLL
        for (int64_t u10 = 0; u10 < 8; ++u10) {
            sum_lanes9[u10] = splat_f32x8(0.0f);
        }
        f32x8 sum_lanes11[2];
        HASTEN_UNROLL
        for (int64_t u12 = 0; u12 < 2; ++u12) {
            sum_lanes11[u12] = splat_f32x8(0.0f);
        }
        f32x4 sum_lanes13 = splat_f32x4(0.0f);
        for (int64_t v1_8 = 0; v1_8 < 64; v1_8 += 64) {
            HASTEN_UNROLL
            for (int64_t u10 = 0; u10 < 8; ++u10) {
                const f32x8 t0 = load_f32x8(x0 + i0 * 100 + u10 * 8 + v1_8) - sum7 / 100.0f;
                sum_lanes9[u10] = sum_lanes9[u10] + t0 * t0;
            }
        }
        for (int64_t v1_8 = 64; v1_8 < 96; v1_8 += 16) {
            HASTEN_UNROLL
            for (int64_t u12 = 0; u12 < 2; ++u12) {
                const f32x8 t1 = load_f32x8(x0 + i0 * 100 + u12 * 8 + v1_8) - sum7 / 100.0f;
                sum_lanes11[u12] = sum_lanes11[u12] + t1 * t1;
            }
        }
        for (int64_t v1_8 = 96; v1_8 < 100; v1_8 += 4) {
            const f32x4 t2 = load_f32x4(x0 + i0 * 100 + v1_8) - sum7 / 100.0f;
            sum_lanes13 = sum_lanes13 + t2 * t2;
        }
        const float sum15 = total_sum_f32x8(sum_lanes9[0] + sum_lanes9[2] + sum_lanes9[4] + sum_lanes9[6] + sum_lanes11[0] + (sum_lanes9[1] + sum_lanes9[3] + sum_lanes9[5] + sum_lanes9[7] + sum_lanes11[1])) + total_sum_f32x4(sum_lanes13);
        for (int64_t i1_17 = 0; i1_17 < 96; i1_17 += 8) {
            store_f32x8(out + i0 * 100 + i1_17, (load_f32x8(x0 + i0 * 100 + i1_17) - sum7 / 100.0f) * (1.0f / sqrt_float(sum15 / 100.0f + 1e-05f)) * load_f32x8(x1 + i1_17) + load_f32x8(x2 + i1_17));
        }
        for (int64_t i1 = 96; i1 < 100; ++i1) {
            out[i0 * 100 + i1] = (x0[i0 * 100 + i1] - sum7 / 100.0f) * (1.0f / sqrt_float(sum15 / 100.0f + 1e-05f)) * x1[i1] + x2[i1];
        }
    }
}
