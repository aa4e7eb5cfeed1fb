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
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int64_t i64x8 __attribute__((vector_size(64)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
static inline int64_t min_int64_t(int64_t a, int64_t b) { return a > b ? b : a; }
static inline f32x8 load_f32x8(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }
static inline f32x8 zip_low_f32x8(f32x8 a, f32x8 b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline f32x8 zip_high_f32x8(f32x8 a, f32x8 b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
static inline void store_f32x8(float *p, f32x8 v) { memcpy(p, &v, sizeof v); }
static inline f32x8 strided_f32x8(const float *p, int64_t stride) { f32x8 v; for (int l = 0; l < 8; ++l) v[l] = p[l * stride]; return v; }
static inline int64_t max_int64_t(int64_t a, int64_t b) { return a < b ? b : a; }
static inline int64_t floordiv_int64_t(int64_t a, int64_t b) { if (b == 0) return 0; const int64_t q = a / b; return q - (a % b != 0 && (a < 0) != (b < 0)); }
static inline f32x8 max_bound_f32x8(f32x8 x, f32x8 bound) { const i32x8 w = (i32x8)(bound > x); return (f32x8)((w & (i32x8)bound) | (~w & (i32x8)x)); }
static inline f32x8 splat_f32x8(float x) { return x - (f32x8){0}; }
static inline float max_bound_float(float x, float bound) { return bound > x ? bound : x; }




/* layout of x */
void map_0(const float *restrict x0, float *restrict out, int64_t size_h, int64_t size_n, int64_t size_w,
        hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    const int64_t t0 = (size_h * size_w + 7) / 8 * size_n;
    for (int64_t task = (int64_t)thread * ((size_h * size_w + 7) / 8 * size_n) / (int64_t)threads; task < ((int64_t)thread * t0 + t0) / (int64_t)threads; ++task) {
        const int64_t stretch = task % 1;
        const int64_t above_stretch = task / 1;
        const int64_t rows = above_stretch % ((size_h * size_w + 7) / 8);
        const int64_t above_rows = above_stretch / ((size_h * size_w + 7) / 8);
        const int64_t i0 = above_rows;
        const int64_t first_row = rows * 8;
        const int64_t begin = stretch * 1024;
        const int64_t end = min_int64_t(begin + 1024, 16);
        if (first_row + 8 <= size_h * size_w) {
            const int64_t whole = begin + (end - begin) / 8 * 8;
            for (int64_t i1_0 = begin; i1_0 < whole; i1_0 += 8) {
                f32x8 block_0[8];
                HASTEN_UNROLL
                for (int64_t i = 0; i < 8; ++i) {
                    block_0[i] = load_f32x8(x0 + first_row + size_h * (i * size_w) + size_h * (i0 * (size_w * 16)) + size_h * (i1_0 * size_w));
                }
                f32x8 block_1[8];
                HASTEN_UNROLL
                for (int64_t pair = 0; pair < 4; ++pair) {
                    block_1[pair * 2] = zip_low_f32x8(block_0[pair], block_0[pair + 4]);
                    block_1[pair * 2 + 1] = zip_high_f32x8(block_0[pair], block_0[pair + 4]);
                }
                f32x8 block_2[8];
                HASTEN_UNROLL
                for (int64_t pair = 0; pair < 4; ++pair) {
                    block_2[pair * 2] = zip_low_f32x8(block_1[pair], block_1[pair + 4]);
                    block_2[pair * 2 + 1] = zip_high_f32x8(block_1[pair], block_1[pair + 4]);
                }
                f32x8 block_3[8];
                HASTEN_UNROLL
                for (int64_t pair = 0; pair < 4; ++pair) {
                    block_3[pair * 2] = zip_low_f32x8(block_2[pair], block_2[pair + 4]);
                    block_3[pair * 2 + 1] = zip_high_f32x8(block_2[pair], block_2[pair + 4]);
                }
                HASTEN_UNROLL
                for (int64_t i = 0; i < 8; ++i) {
                    store_f32x8(out + first_row * 16 + size_h * (i0 * (size_w * 16)) + i * 16 + i1_0, block_3[i]);
                }
            }
            for (int64_t i1 = whole; i1 < end; ++i1) {
                for (int64_t i = 0; i < 8; ++i) {
                    out[first_row * 16 + size_h * (i0 * (size_w * 16)) + i * 16 + i1] = x0[first_row + size_h * (i0 * (size_w * 16)) + size_h * (i1 * size_w) + i];
                }
            }
        } else {
            for (int64_t i2i3 = first_row; i2i3 < size_h * size_w; ++i2i3) {
                const int64_t whole0 = begin + (end - begin) / 8 * 8;
                for (int64_t i1_1 = begin; i1_1 < whole0; i1_1 += 8) {
                    store_f32x8(out + size_h * (i0 * (size_w * 16)) + i1_1 + i2i3 * 16, strided_f32x8(x0 + size_h * (i0 * (size_w * 16)) + size_h * (i1_1 * size_w) + i2i3, size_h * size_w));
                }
                for (int64_t i1 = whole0; i1 < end; ++i1) {
                    out[size_h * (i0 * (size_w * 16)) + i1 + i2i3 * 16] = x0[size_h * (i0 * (size_w * 16)) + size_h * (i1 * size_w) + i2i3];
                }
            }
        }
    }
}

/* Conv 'p', Relu 'y' */
void winograd_1(const float *restrict a, const float *restrict x0, const float *restrict zeros, const float
        *restrict b, float *restrict out, float *restrict scratch, int64_t size_h, int64_t size_n, int64_t
        size_w, hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    /* threads divide tiles, or panels: then each transforms all inputs and reads fewer weights */
    const int64_t t0 = (size_h + 3) / 4;
    const int64_t t1 = (size_w + 3) / 4;
    const int64_t t2 = t0 * (t1 * size_n);
    const int64_t t3 = (int64_t)threads;
    const int64_t t4 = (t3 + 1) / t3;
    const int64_t t5 = (t2 + 5) / 6;
    const uint8_t split_panels = t2 + t0 * (t1 * (size_n * (t4 * 2))) + t4 * 4 < max_int64_t(t2 - (t3 * t5 - t5) / t3 * 6, (t3 + t5 - 2) / t3 * 6) * 5 + 8;
    const int64_t first_tile = (split_panels ? 0 : min_int64_t((int64_t)thread * t5 / t3 * 6, t2));
    const int64_t last_tile = (split_panels ? t2 : min_int64_t(((int64_t)thread * t5 + t5) / t3 * 6, t2));
    const int64_t first_panel = (split_panels ? (int64_t)thread * 2 / t3 : 0);
    const int64_t last_panel = (split_panels ? ((int64_t)thread * 2 + 2) / t3 : 2);
    /* blocks of about equal size */
    const int64_t blocks = floordiv_int64_t(last_tile + 59 - first_tile, 60);
    const int64_t size = floordiv_int64_t(floordiv_int64_t(blocks + last_tile - first_tile - 1, max_int64_t(blocks, 1)) + 5, 6) * 6;
    const float *pixel[36];
    const float *table[2160];
    float tile[512] __attribute__((aligned(64)));
    for (int64_t number = 0; number < blocks; ++number) {
        const int64_t block = first_tile + number * size;
        const int64_t height = min_int64_t(last_tile - block, size);
        /* inputs of the block, transformed: [point][tile][channel] */
        for (int64_t t = 0; t < height; ++t) {
            const int64_t flat = block + t;
            const int64_t image = flat / t1 / t0;
            const int64_t top = flat / t1 % t0 * 4;
            const int64_t left = flat % t1 * 4;
            HASTEN_UNROLL
            for (int64_t i = 0; i < 6; ++i) {
                const int64_t y = i + top;
                HASTEN_UNROLL
                for (int64_t j = 0; j < 6; ++j) {
                    const int64_t x = j + left;
                    pixel[i * 6 + j] = (((1 <= y && y < size_h + 1) && 1 <= x) && x < size_w + 1 ? a + size_h * (image * (size_w * 16)) + size_w * (y * 16) + x * 16 - size_w * 16 - 16 : zeros);
                }
            }
            for (int64_t k = 0; k < 16; k += 8) {
                f32x8 half[6][6];
                HASTEN_UNROLL
                for (int64_t j = 0; j < 6; ++j) {
                    const f32x8 v0 = load_f32x8(pixel[j] + k);
                    const f32x8 v1 = load_f32x8(pixel[j + 6] + k);
                    const f32x8 v2 = load_f32x8(pixel[j + 12] + k);
                    const f32x8 v3 = load_f32x8(pixel[j + 18] + k);
                    const f32x8 v4 = load_f32x8(pixel[j + 24] + k);
                    const f32x8 v5 = load_f32x8(pixel[j + 30] + k);
                    const f32x8 even6 = v4 + v2 * -2.25f;
                    const f32x8 odd7 = v3 + v1 * -2.25f;
                    const f32x8 even8 = v4 + v2 * -0.390625f;
                    const f32x8 odd9 = v3 + v1 * -0.390625f;
                    half[0][j] = v4 + v0 * 0.87890625f + v2 * -2.640625f;
                    half[1][j] = even6 + odd7 * 0.625f;
                    half[2][j] = even6 + odd7 * -0.625f;
                    half[3][j] = even8 + odd9 * 1.5f;
                    half[4][j] = even8 + odd9 * -1.5f;
                    half[5][j] = v5 + v1 * 0.87890625f + v3 * -2.640625f;
                }
                HASTEN_UNROLL
                for (int64_t i = 0; i < 6; ++i) {
                    const f32x8 v10 = half[i][0];
                    const f32x8 v11 = half[i][1];
                    const f32x8 v12 = half[i][2];
                    const f32x8 v13 = half[i][3];
                    const f32x8 v14 = half[i][4];
                    const f32x8 v15 = half[i][5];
                    const f32x8 even16 = v14 + v12 * -2.25f;
                    const f32x8 odd17 = v13 + v11 * -2.25f;
                    const f32x8 even18 = v14 + v12 * -0.390625f;
                    const f32x8 odd19 = v13 + v11 * -0.390625f;
                    store_f32x8(scratch + i * 5856 + k + t * 16, v14 + v10 * 0.87890625f + v12 * -2.640625f);
                    store_f32x8(scratch + i * 5856 + k + t * 16 + 976, even16 + odd17 * 0.625f);
                    store_f32x8(scratch + i * 5856 + k + t * 16 + 1952, even16 + odd17 * -0.625f);
                    store_f32x8(scratch + i * 5856 + k + t * 16 + 2928, even18 + odd19 * 1.5f);
                    store_f32x8(scratch + i * 5856 + k + t * 16 + 3904, even18 + odd19 * -1.5f);
                    store_f32x8(scratch + i * 5856 + k + t * 16 + 4880, v15 + v11 * 0.87890625f + v13 * -2.640625f);
                }
            }
        }
        for (int64_t point = 0; point < 36; ++point) {
            for (int64_t t = 0; t < floordiv_int64_t(height + 5, 6) * 6; ++t) {
                table[point * 60 + t] = scratch + min_int64_t(t, height - 1) * 16 + point * 976;
            }
        }
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const int64_t width = min_int64_t(40 - panel * 32, 32);
            const int64_t stride = (40 - panel * 32 <= 16 ? 16 : 32);
            const int64_t packed = panel * 18432;
            const int64_t ahead_step = floordiv_int64_t(31, floordiv_int64_t(height + 5, 6)) + 1;
            /* products of all points: [point][tile][column] */
            for (int64_t point = 0; point < 36; ++point) {
                for (int64_t r0 = 0; r0 < height; r0 += 6) {
                    for (int64_t column = 0; column < width; column += 16) {
                        const int64_t t6 = stride * 16;
                        tile_rows_x16(min_int64_t(height - r0, 6), table + point * 60 + r0, 1, 1, 16, b + column + packed + point * (stride * 16), stride, b + ahead_step * (floordiv_int64_t(r0, 6) * 16) + packed + point * t6 + t6, ahead_step, scratch + column + point * 1936 + r0 * 32 + 35136, 32);
                    }
                }
            }
            /* results of the block, transformed back */
            for (int64_t t = 0; t < height; ++t) {
                const int64_t flat = block + t;
                const int64_t image = flat / t1 / t0;
                const int64_t top = flat / t1 % t0 * 4;
                const int64_t left = flat % t1 * 4;
                for (int64_t j = 0; j < width; j += 8) {
                    f32x8 half[4][6];
                    HASTEN_UNROLL
                    for (int64_t p = 0; p < 6; ++p) {
                        const f32x8 v24 = load_f32x8(scratch + j + p * 1936 + t * 32 + 35136);
                        const f32x8 v25 = load_f32x8(scratch + j + p * 1936 + t * 32 + 46752);
                        const f32x8 v26 = load_f32x8(scratch + j + p * 1936 + t * 32 + 58368);
                        const f32x8 v27 = load_f32x8(scratch + j + p * 1936 + t * 32 + 69984);
                        const f32x8 v28 = load_f32x8(scratch + j + p * 1936 + t * 32 + 81600);
                        const f32x8 v29 = load_f32x8(scratch + j + p * 1936 + t * 32 + 93216);
                        const f32x8 sum30 = v25 + v26;
                        const f32x8 sum31 = v27 + v28;
                        const f32x8 difference32 = v25 - v26;
                        const f32x8 difference33 = v27 - v28;
                        half[0][p] = v24 + sum30 + sum31;
                        half[1][p] = difference32 * 0.625f + difference33 * 1.5f;
                        half[2][p] = sum30 * 0.390625f + sum31 * 2.25f;
                        half[3][p] = v29 + difference32 * 0.244140625f + difference33 * 3.375f;
                    }
                    HASTEN_UNROLL
                    for (int64_t i = 0; i < 4; ++i) {
                        const f32x8 v34 = half[i][0];
                        const f32x8 v35 = half[i][1];
                        const f32x8 v36 = half[i][2];
                        const f32x8 v37 = half[i][3];
                        const f32x8 v38 = half[i][4];
                        const f32x8 v39 = half[i][5];
                        const f32x8 sum40 = v35 + v36;
                        const f32x8 sum41 = v37 + v38;
                        const f32x8 difference42 = v35 - v36;
                        const f32x8 difference43 = v37 - v38;
                        store_f32x8(tile + i * 128 + j, v34 + sum40 + sum41);
                        store_f32x8(tile + i * 128 + j + 32, difference42 * 0.625f + difference43 * 1.5f);
                        store_f32x8(tile + i * 128 + j + 64, sum40 * 0.390625f + sum41 * 2.25f);
                        store_f32x8(tile + i * 128 + j + 96, v39 + difference42 * 0.244140625f + difference43 * 3.375f);
                    }
                }
                for (int64_t dy = 0; dy < min_int64_t(size_h - top, 4); ++dy) {
                    const int64_t y = dy + top;
                    for (int64_t dx = 0; dx < min_int64_t(size_w - left, 4); ++dx) {
                        const int64_t x = dx + left;
                        if (width == 32) {
                            for (int64_t j_21 = 0; j_21 < 32; j_21 += 8) {
                                store_f32x8(out + size_h * (image * (size_w * 40)) + j_21 + panel * 32 + size_w * (y * 40) + x * 40, max_bound_f32x8(load_f32x8(tile + dx * 32 + dy * 128 + j_21) + load_f32x8(x0 + j_21 + panel * 32), splat_f32x8(0.0f)));
                            }
                            for (int64_t j = 32; j < 32; ++j) {
                                out[size_h * (image * (size_w * 40)) + j + panel * 32 + size_w * (y * 40) + x * 40] = max_bound_float(tile[dx * 32 + dy * 128 + j] + x0[j + panel * 32], 0.0f);
                            }
                        } else {
                            const int64_t whole22 = width / 8 * 8;
                            for (int64_t j_23 = 0; j_23 < whole22; j_23 += 8) {
                                store_f32x8(out + size_h * (image * (size_w * 40)) + j_23 + panel * 32 + size_w * (y * 40) + x * 40, max_bound_f32x8(load_f32x8(tile + dx * 32 + dy * 128 + j_23) + load_f32x8(x0 + j_23 + panel * 32), splat_f32x8(0.0f)));
                            }
                            for (int64_t j = whole22; j < width; ++j) {
                                out[size_h * (image * (size_w * 40)) + j + panel * 32 + size_w * (y * 40) + x * 40] = max_bound_float(tile[dx * 32 + dy * 128 + j] + x0[j + panel * 32], 0.0f);
                            }
                        }
                    }
                }
            }
        }
    }
}

/* result in row-major order */
void map_2(const float *restrict x0, float *restrict out, int64_t size_h, int64_t size_n, int64_t size_w,
        hasten_fault *fault, int32_t kernel, int32_t thread, int32_t threads) {
    (void)fault, (void)kernel;
    const int64_t t0 = (size_h * size_w + 1023) / 1024 * (size_n * 5);
    for (int64_t task = (int64_t)thread * ((size_h * size_w + 1023) / 1024 * (size_n * 5)) / (int64_t)threads; task < ((int64_t)thread * t0 + t0) / (int64_t)threads; ++task) {
        const int64_t stretch = task % ((size_h * size_w + 1023) / 1024);
        const int64_t above_stretch = task / ((size_h * size_w + 1023) / 1024);
        const int64_t rows = above_stretch % 5;
        const int64_t above_rows = above_stretch / 5;
        const int64_t n = above_rows;
        const int64_t first_row = rows * 8;
        const int64_t begin = stretch * 1024;
        const int64_t end = min_int64_t(begin + 1024, size_h * size_w);
        const int64_t whole = begin + (end - begin) / 8 * 8;
        for (int64_t ohow_0 = begin; ohow_0 < whole; ohow_0 += 8) {
            f32x8 block_0[8];
            HASTEN_UNROLL
            for (int64_t i = 0; i < 8; ++i) {
                block_0[i] = load_f32x8(x0 + first_row + size_h * (n * (size_w * 40)) + i * 40 + ohow_0 * 40);
            }
            f32x8 block_1[8];
            HASTEN_UNROLL
            for (int64_t pair = 0; pair < 4; ++pair) {
                block_1[pair * 2] = zip_low_f32x8(block_0[pair], block_0[pair + 4]);
                block_1[pair * 2 + 1] = zip_high_f32x8(block_0[pair], block_0[pair + 4]);
            }
            f32x8 block_2[8];
            HASTEN_UNROLL
            for (int64_t pair = 0; pair < 4; ++pair) {
                block_2[pair * 2] = zip_low_f32x8(block_1[pair], block_1[pair + 4]);
                block_2[pair * 2 + 1] = zip_high_f32x8(block_1[pair], block_1[pair + 4]);
            }
            f32x8 block_3[8];
            HASTEN_UNROLL
            for (int64_t pair = 0; pair < 4; ++pair) {
                block_3[pair * 2] = zip_low_f32x8(block_2[pair], block_2[pair + 4]);
                block_3[pair * 2 + 1] = zip_high_f32x8(block_2[pair], block_2[pair + 4]);
            }
            HASTEN_UNROLL
            for (int64_t i = 0; i < 8; ++i) {
                store_f32x8(out + first_row * (size_h * size_w) + size_h * (i * size_w) + size_h * (n * (size_w * 40)) + ohow_0, block_3[i]);
            }
        }
        for (int64_t ohow = whole; ohow < end; ++ohow) {
            for (int64_t i = 0; i < 8; ++i) {
                out[first_row * (size_h * size_w) + size_h * (i * size_w) + size_h * (n * (size_w * 40)) + ohow] = x0[first_row + size_h * (n * (size_w * 40)) + i + ohow * 40];
            }
        }
    }
}
