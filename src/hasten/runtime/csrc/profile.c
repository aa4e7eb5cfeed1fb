/* The log of a profiled run, in memory of the caller's. Runs are profiled one at a time. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#define HASTEN_PROFILE

#include <stddef.h>
#include <time.h>

#include "profile.h"

/* `hasten/search/profile.py` has the same structure. */
typedef struct hasten_log {
    int64_t *marks;  /* [threads][room] pairs (event, nanoseconds); of a row's first pair, the number of
                        pairs after it, and 0 */
    int64_t threads; /* others are not logged */
    int64_t room;    /* marks beyond are dropped */
    int64_t *counts; /* [parts][kernels] of (flops, bytes, bits) */
    int64_t kernels; /* the most that a part has */
} hasten_log;

static hasten_log into;

HASTEN_API void hasten_profile(const hasten_log *log) { into = *log; }

/* The clock of the marks; the same on all threads. */
HASTEN_API int64_t hasten_profile_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void hasten_mark(int32_t thread, int64_t event) {
    if (thread >= into.threads) return;
    int64_t *row = into.marks + 2 * into.room * thread;
    const int64_t next = row[0] + 1;
    if (next >= into.room) return;
    row[0] = next;
    row[2 * next] = event;
    row[2 * next + 1] = hasten_profile_clock();
}

void hasten_count(int32_t part, int32_t kernel, int64_t flops, int64_t bytes, int64_t bits) {
    if (into.threads == 0) return;
    int64_t *row = into.counts + 3 * (into.kernels * part + kernel);
    row[0] = flops, row[1] = bytes, row[2] = bits;
}
