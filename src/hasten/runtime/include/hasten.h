/* The C interface of a shared object that hasten compiled from a model.
 *
 * An artifact (name.hasten) is a stored zip; its members code/<target>.so export the functions below,
 * and manifest.json says which inputs, outputs and symbolic sizes each part has. Any language that can
 * load a shared object can run a model:
 *
 *     1. load code/<target>.so, check hasten_abi_version() == HASTEN_ABI_VERSION; before code of x86-64-v4-amx
 *        ask Linux for the registers that it uses: syscall(SYS_arch_prctl, 0x1023, 18) == 0, once in a process
 *     2. map weights.bin (its offset in the file is a multiple of 4096)
 *     3. pool = hasten_pool_create(0)                      once in a process; NULL runs on one thread
 *     4. hasten_plan(part, sizes, shapes, &arena_bytes)    for each new combination of sizes
 *     5. fill a hasten_call, hasten_run(part, &call)
 *
 * All functions may be called from several threads at once, each with its own hasten_call and arena.
 * Nothing here keeps a pointer after it returns, allocates (but for the pool), or prints.
 */
#ifndef HASTEN_H
#define HASTEN_H

#include <stdint.h>

#define HASTEN_ABI_VERSION 1

#if defined(__GNUC__) || defined(__clang__)
#define HASTEN_API __attribute__((visibility("default")))
#else
#define HASTEN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hasten_pool hasten_pool;

/* What hasten_plan may return. */
enum { HASTEN_TOO_LARGE = -2 };

/* What hasten_run returns, and hasten_fault.code. */
enum {
    HASTEN_OK = 0,
    HASTEN_FAULT_INDEX = 1,    /* an index outside its axis: value, and limit = length of the axis */
    HASTEN_FAULT_DIVISION = 2, /* an integer division by zero */
    HASTEN_FAULT_PART = 3      /* there is no such part: value = the part asked for, limit = parts */
};

/* What went wrong in a run. The outputs are then undefined, and nothing outside them was written. */
typedef struct hasten_fault {
    int32_t code;   /* HASTEN_OK, or the first fault that any thread met */
    int32_t kernel; /* index into the step's "kernels" in the manifest */
    int64_t value;  /* the offending value */
    int64_t limit;  /* the bound it broke */
} hasten_fault;

/* One run of one part. The caller fills everything; fault.code must be HASTEN_OK before the run. */
typedef struct hasten_call {
    const int64_t *sizes; /* the symbolic sizes, in the order of the step's "sizes" in the manifest: lengths of
                             axes of inputs; or, for those in the step's "elements", integers that inputs hold */
    void *const *values;  /* the inputs, then the outputs: dense, row-major, aligned to their element;
                             an output never overlaps anything else; a value of no elements is not touched */
    const void *weights;  /* the start of weights.bin, aligned to 64 bytes */
    void *arena;          /* arena_bytes of scratch memory, aligned to 64 bytes; contents do not matter */
    hasten_pool *pool;    /* or NULL */
    int32_t threads;      /* threads to use, the caller's included */
    int32_t reserved;     /* 0 */
    hasten_fault fault;
} hasten_call;

/* HASTEN_ABI_VERSION of the header that the object was compiled with. */
HASTEN_API int32_t hasten_abi_version(void);

/* Sizes of a part's outputs and of its scratch memory.
 *
 * sizes: as in hasten_call, lengths >= 0. shapes: receives the dims of all outputs, one after the other.
 * Returns 0; or 1 + the index in the manifest's "guards" of the first condition that these sizes break;
 * or -1 if there is no such part; or HASTEN_TOO_LARGE if some value would be too large to address.
 * Nothing is written unless 0 is returned. */
HASTEN_API int32_t hasten_plan(int32_t part, const int64_t *sizes, int64_t *shapes, int64_t *arena_bytes);

/* Runs a part. Returns call->fault.code. */
HASTEN_API int32_t hasten_run(int32_t part, hasten_call *call);

/* A pool of threads that runs share. It may be used by the shared objects of other artifacts too, as long
 * as the object that created it stays loaded. Worker threads start at the first run that asks for them.
 * While one caller runs on the pool, another caller's run is executed by that caller's thread alone.
 * After fork the child may use the pool; its workers start anew.
 *
 * threads: the most that a run may use, the caller's included; 0 for as many as runs ask for.
 * Returns NULL if there is no memory. */
HASTEN_API hasten_pool *hasten_pool_create(int32_t threads);

/* Ends and joins the workers. No run may be under way or begin. NULL is ignored. */
HASTEN_API void hasten_pool_destroy(hasten_pool *pool);

#ifdef __cplusplus
}
#endif

#endif
