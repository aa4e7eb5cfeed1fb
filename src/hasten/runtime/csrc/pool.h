/* What generated code uses: run a task on all threads of a call, meet at a barrier, report a fault.
 *
 *     static void run_part_0(void *argument, hasten_team *team) {
 *         hasten_call *call = argument;
 *         first_kernel(..., team->index, team->count);
 *         hasten_barrier(team);
 *         second_kernel(..., team->index, team->count);
 *     }
 *     ...
 *     hasten_pool_run(call->pool, call->threads, nanoseconds, run_part_0, call);
 *
 * A team can be smaller than asked for (a busy pool or busy cores), so kernels divide their work
 * by team->count and never by call->threads, and their results must not depend on it.
 */
#ifndef HASTEN_POOL_H
#define HASTEN_POOL_H

#include <stddef.h>

#include "hasten.h"

/* A float of 16 bits: the upper half of a float of 32. Generated code converts it and multiplies it in pairs. */
typedef uint16_t hasten_bf16;

typedef struct hasten_team hasten_team;
typedef void (*hasten_task)(void *argument, hasten_team *team);

/* A thread's view of the run under way. */
struct hasten_team {
    int32_t index; /* 0 is the caller */
    int32_t count;
    hasten_pool *pool; /* NULL in a team of one */
};

/* The part of a pool that every shared object knows. The functions are those of the object that created
 * the pool, so that code compiled by another version of hasten never touches what it does not know. */
struct hasten_pool {
    int32_t abi_version;
    int32_t reserved;
    void (*run)(hasten_pool *pool, int32_t threads, int64_t nanoseconds, hasten_task task, void *argument);
    void (*barrier)(hasten_team *team);
    void (*destroy)(hasten_pool *pool);
};

/* Runs task(argument, team) on `threads` threads, or fewer, and returns when all have returned.
 *
 * nanoseconds: about how long the task takes on one thread. Workers that do not come in a small part of that
 * time, because they sleep or because other programs hold their cores, are not waited for.
 * INT64_MAX waits for all of them. */
static inline void hasten_pool_run(hasten_pool *pool, int32_t threads, int64_t nanoseconds, hasten_task task,
                                   void *argument) {
    if (pool == NULL || threads <= 1) {
        hasten_team alone = {0, 1, NULL};
        task(argument, &alone);
        return;
    }
    pool->run(pool, threads, nanoseconds, task, argument);
}

/* Returns when all threads of the team have come here; what they wrote before is then visible to all. */
static inline void hasten_barrier(hasten_team *team) {
    if (team->count > 1) team->pool->barrier(team);
}

/* Notes a fault; the first one is kept. Any thread may call it, and goes on (or leaves its kernel, but not
 * the task: the others wait for it at the barriers). */
static inline void hasten_report(hasten_fault *fault, int32_t code, int32_t kernel, int64_t value,
                                 int64_t limit) {
    int32_t none = HASTEN_OK;
    if (__atomic_compare_exchange_n(&fault->code, &none, code, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        fault->kernel = kernel;
        fault->value = value;
        fault->limit = limit;
    }
}

#endif
