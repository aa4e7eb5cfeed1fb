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
static inline f32x8 max_bound_f32x8(f32x8 x, f32x8 bound) { const i32x8 w = (i32x8)(bound > x); return (f32x8)((w & (i32x8)bound) | (~w & (i32x8)x)); }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline float max_bound_float(float x, float bound) { return bound > x ? bound : x; }




/* MatMul 'p', Add 'q', Relu 's', Add 'y' */
void product_0(const float *restrict a, const float *restrict x0, const float *x1, const float *restrict b,
        float *out, int64_t size_n, hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    const int64_t t0 = (int64_t)threads;
    const int64_t by_rows = (t0 + (size_n + 5) / 6 - 1) / t0 * 2;
    const int64_t by_panels = (size_n + 5) / 6 * ((t0 + 1) / t0);
    const uint8_t split_rows = (40 < size_n ? by_rows * 16 <= by_panels * 17 : by_rows * 17 < by_panels * 16);
    const uint8_t split_panels = !split_rows;
    const int64_t first_row = (split_rows ? min_int64_t((int64_t)thread * ((size_n + 5) / 6) / t0 * 6, size_n) : 0);
    const int64_t last_row = (split_rows ? min_int64_t(((int64_t)thread * ((size_n + 5) / 6) + (size_n + 5) / 6) / t0 * 6, size_n) : size_n);
    const int64_t first_panel = (split_panels ? (int64_t)thread * 2 / t0 : 0);
    const int64_t last_panel = (split_panels ? ((int64_t)thread * 2 + 2) / t0 : 2);
    const float *table[192];
    float tile[256] __attribute__((aligned(64)));
    for (int64_t block = first_row; block < last_row; block += 192) {
        const int64_t height = min_int64_t(last_row - block, 192);
        for (int64_t r = 0; r < (height + 5) / 6 * 6; ++r) {
            const int64_t row = block + min_int64_t(r, height - 1);
            table[r] = a + row * 48;
        }
        if (height <= 2) {
            for (int64_t panel = first_panel; panel < last_panel; panel += 4) {
                const int64_t packed = panel * 1536;
                const int64_t together = min_int64_t(last_panel - panel, 4);
                few_rows_f32(height, table, 192, 1, 48, b + packed, 32, 1536, together, (72 - panel * 32 - together * 32 <= 16 ? 1 : 0), tile);
                for (int64_t sub = 0; sub < together; ++sub) {
                    for (int64_t r = 0; r < height; ++r) {
                        const int64_t row = block + r;
                        if (min_int64_t(40 - panel * 32 - sub * 32, 32) == 32) {
                            for (int64_t j_1 = 0; j_1 < 32; j_1 += 8) {
                                const int64_t t1 = j_1 + panel * 32;
                                const int64_t t2 = sub * 32;
                                store_f32x8(out + t1 + row * 40 + t2, max_bound_f32x8(load_f32x8(tile + j_1 + r * 32 + sub * 64) + load_f32x8(x0 + t1 + t2), splat_f32x8(0.0f)) + load_f32x8(x1 + t1 + row * 40 + t2));
                            }
                            for (int64_t j = 32; j < 32; ++j) {
                                const int64_t t3 = j + panel * 32;
                                const int64_t t4 = sub * 32;
                                out[t3 + row * 40 + t4] = max_bound_float(tile[j + r * 32 + sub * 64] + x0[t3 + t4], 0.0f) + x1[t3 + row * 40 + t4];
                            }
                        } else {
                            const int64_t whole2 = min_int64_t(40 - panel * 32 - sub * 32, 32) / 8 * 8;
                            for (int64_t j_3 = 0; j_3 < whole2; j_3 += 8) {
                                const int64_t t5 = j_3 + panel * 32;
                                const int64_t t6 = sub * 32;
                                store_f32x8(out + t5 + row * 40 + t6, max_bound_f32x8(load_f32x8(tile + j_3 + r * 32 + sub * 64) + load_f32x8(x0 + t5 + t6), splat_f32x8(0.0f)) + load_f32x8(x1 + t5 + row * 40 + t6));
                            }
                            for (int64_t j = whole2; j < min_int64_t(40 - panel * 32 - sub * 32, 32); ++j) {
                                const int64_t t7 = j + panel * 32;
                                const int64_t t8 = sub * 32;
                                out[t7 + row * 40 + t8] = max_bound_float(tile[j + r * 32 + sub * 64] + x0[t7 + t8], 0.0f) + x1[t7 + row * 40 + t8];
                            }
                        }
                    }
                }
            }
        } else {
            for (int64_t panel = first_panel; panel < last_panel; ++panel) {
                const int64_t width = min_int64_t(40 - panel * 32, 32);
                const int64_t stride = (40 - panel * 32 <= 16 ? 16 : 32);
                const int64_t packed = panel * 1536;
                const int64_t ahead_step = 31 / ((height + 5) / 6) + 1;
                for (int64_t r0 = 0; r0 < height; r0 += 6) {
                    const int64_t m = min_int64_t(height - r0, 6);
                    for (int64_t r = 0; r < m; ++r) {
                        const int64_t row = block + r + r0;
                        __builtin_prefetch(x1 + panel * 32 + row * 40);
                        __builtin_prefetch(x1 + panel * 32 + row * 40 + 16);
                    }
                    for (int64_t column = 0; column < width; column += 16) {
                        tile_rows_x16(m, table + r0, 192, 1, 48, b + column + packed, stride, b + ((height + 5) / 6 == 1 ? packed : ahead_step * (r0 / 6 * 48) + packed + 1536), ahead_step, tile + column, 32);
                    }
                    for (int64_t r = 0; r < m; ++r) {
                        const int64_t row = block + r + r0;
                        if (width == 32) {
                            for (int64_t j_5 = 0; j_5 < 32; j_5 += 8) {
                                const int64_t t9 = j_5 + panel * 32;
                                store_f32x8(out + t9 + row * 40, max_bound_f32x8(load_f32x8(tile + j_5 + r * 32) + load_f32x8(x0 + t9), splat_f32x8(0.0f)) + load_f32x8(x1 + t9 + row * 40));
                            }
                            for (int64_t j = 32; j < 32; ++j) {
                                const int64_t t10 = j + panel * 32;
                                out[t10 + row * 40] = max_bound_float(tile[j + r * 32] + x0[t10], 0.0f) + x1[t10 + row * 40];
                            }
                        } else {
                            const int64_t whole6 = width / 8 * 8;
                            for (int64_t j_7 = 0; j_7 < whole6; j_7 += 8) {
                                const int64_t t11 = j_7 + panel * 32;
                                store_f32x8(out + t11 + row * 40, max_bound_f32x8(load_f32x8(tile + j_7 + r * 32) + load_f32x8(x0 + t11), splat_f32x8(0.0f)) + load_f32x8(x1 + t11 + row * 40));
                            }
                            for (int64_t j = whole6; j < width; ++j) {
                                const int64_t t12 = j + panel * 32;
                                out[t12 + row * 40] = max_bound_float(tile[j + r * 32] + x0[t12], 0.0f) + x1[t12 + row * 40];
                            }
                        }
                    }
                }
            }
        }
    }
}
