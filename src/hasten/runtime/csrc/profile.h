/* Marks in the code of a part: what each thread does from here on. They are nothing unless HASTEN_PROFILE is
 * defined, so that code which is not profiled reads no clock. `hasten profile` builds an artifact's C once
 * more with it, together with profile.c. */
#ifndef HASTEN_PROFILE_H
#define HASTEN_PROFILE_H

#ifdef HASTEN_PROFILE

#include "hasten.h"

/* What a thread does after a mark: the kernel of that number, or */
enum {
    HASTEN_WAITS = -1,  /* waiting for the other threads */
    HASTEN_ENDS = -2,   /* nothing: the call is over */
    HASTEN_BEGINS = -3  /* beginning a call of part p, HASTEN_BEGINS - p: gathering the team */
};

void hasten_mark(int32_t thread, int64_t event);

/* What a kernel amounts to in this run: floating-point operations of its products, bytes that it reads and
 * writes once, and bits of the factors that it multiplies. */
void hasten_count(int32_t part, int32_t kernel, int64_t flops, int64_t bytes, int64_t bits);

#define HASTEN_MARK(thread, event) hasten_mark(thread, event)
#define HASTEN_PROFILED(statement) statement

#else

#define HASTEN_MARK(thread, event) ((void)0)
#define HASTEN_PROFILED(statement) ((void)0)

#endif
#endif
