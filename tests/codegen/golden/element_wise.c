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
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline f32x8 select_f32x8(i32x8 m, f32x8 a, f32x8 b) { const i32x8 w = m; return (f32x8)((w & (i32x8)a) | (~w & (i32x8)b)); }
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline f32x8 neg_f32x8(f32x8 x) { return -x; }
static inline f32x8 bitcast_i32x8(i32x8 x) { f32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 bitcast_f32x8(f32x8 x) { i32x8 y; memcpy(&y, &x, sizeof y); return y; }
static inline i32x8 splat_i32x8(int32_t x) { return x - (i32x8){0}; }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline float neg_float(float x) { return -x; }
static inline float bitcast_int32_t(int32_t x) { float y; memcpy(&y, &x, sizeof y); return y; }
static inline int32_t bitcast_float(float x) { int32_t y; memcpy(&y, &x, sizeof y); return y; }

static inline f32x8 hasten_sigmoid_f32x8(f32x8 x) {
    const f32x8 t0 = select_f32x8((i32x8)(splat_f32x8(87.99503462630605f) < x), splat_f32x8(87.99503462630605f), x);
    const f32x8 t1 = select_f32x8((i32x8)(t0 < splat_f32x8(-88.6881818072931f)), splat_f32x8(-88.6881818072931f), t0);
    const f32x8 t2 = t1 * -1.44269504f + 12583039.0f;
    const f32x8 t3 = t2 - 12583039.0f;
    const f32x8 t4 = neg_f32x8(t1) - t3 * 0.693145751953125f - t3 * 1.4286068203094173e-06f;
    return 1.0f / (((((((0.0013814322f * t4 + 0.008368851f) * t4 + 0.0416684f) * t4 + 0.1666652f) * t4 + 0.49999994f) * t4 + 1.0f) * t4 + 1.0f) * bitcast_i32x8(bitcast_f32x8(t2) << splat_i32x8(23)) + 1.0f);
}

static inline float hasten_sigmoid_float(float x) {
    const float t0 = ((87.99503462630605f < x ? 87.99503462630605f : x) < -88.6881818072931f ? -88.6881818072931f : (87.99503462630605f < x ? 87.99503462630605f : x));
    const float t1 = t0 * -1.44269504f + 12583039.0f;
    const float t2 = t1 - 12583039.0f;
    const float t3 = neg_float(t0) - t2 * 0.693145751953125f - t2 * 1.4286068203094173e-06f;
    return 1.0f / (((((((0.0013814322f * t3 + 0.008368851f) * t3 + 0.0416684f) * t3 + 0.1666652f) * t3 + 0.49999994f) * t3 + 1.0f) * t3 + 1.0f) * bitcast_int32_t(bitcast_float(t1) << 23) + 1.0f);
}



/* Mul 'p', Sigmoid 'q', Add 'y' */
void map_0(const float *x0, const float *restrict x1, float *out, int64_t size_n, hasten_fault *fault, int32_t
        kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    for (int64_t task = (int64_t)thread * size_n / (int64_t)threads; task < ((int64_t)thread * size_n + size_n) / (int64_t)threads; ++task) {
        const int64_t i0 = task;
        for (int64_t i1_1 = 0; i1_1 < 96; i1_1 += 8) {
            const f32x8 t0 = load_f32x8(x0 + i0 * 100 + i1_1) * load_f32x8(x1 + i1_1);
            store_f32x8(out + i0 * 100 + i1_1, t0 + hasten_sigmoid_f32x8(t0));
        }
        for (int64_t i1 = 96; i1 < 100; ++i1) {
            const float t1 = x0[i0 * 100 + i1] * x1[i1];
            out[i0 * 100 + i1] = t1 + hasten_sigmoid_float(t1);
        }
    }
}
