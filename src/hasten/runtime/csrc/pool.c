/* The thread pool. See hasten.h for what it promises and pool.h for how generated code uses it.
 *
 * Every wait (a worker for its next task, a thread at a barrier, the caller for its workers) is a wait
 * until a number changes: it spins for a time, then yields, then sleeps on a condition variable. Who changes
 * the number takes the mutex only if somebody sleeps. Spinning wins when all threads have a core of their
 * own; sleeping bounds the loss when they have not.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE = 128, /* two lines: processors fetch them in pairs; Apple's are this long */
    MOST_THREADS = 1024,
    FIRST_LOOKS = 64,    /* before the clock is asked for the first time */
    LOOKS_PER_CLOCK = 16 /* a look at the clock costs about as much as a few looks at the number */
};
static const int64_t SPIN_NANOSECONDS = 50 * 1000;
static const int64_t YIELD_NANOSECONDS = 50 * 1000;

/* How long a caller waits for its workers to come: an eighth of what the task takes alone, within limits. */
static const int64_t PATIENCE_PART = 8;
static const int64_t LEAST_PATIENCE = 2 * 1000;
static const int64_t MOST_PATIENCE = 4 * 1000 * 1000;

/* Cores that other programs use are left to them: a thread that has to share its core keeps the others waiting
 * at every barrier. Shorter tasks do not repay two looks at the clocks of each thread. */
static const int64_t LEAST_WATCHED = 200 * 1000;
static const double TOO_MUCH = 0.4;                   /* a team that loses this part of its time is too large */
static const int64_t LEAST_MEMORY = 64 * 1000 * 1000; /* of that time; a short disturbance is none, nor is it
                                                         if threads that wake up begin on one core */
static const int64_t MEMORY_RUNS = 4;                 /* but at least so many runs are remembered */
static const int64_t LEAST_LEFT = 64 * 1000 * 1000;   /* after this time one more thread is tried; */
static const int64_t MOST_LEFT = 1000 * 1000 * 1000;  /* if that fails, after twice the time, up to this */

static int64_t clock_of(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now(void) { return clock_of(CLOCK_MONOTONIC); }

static int64_t clamp(int64_t x, int64_t least, int64_t most) { return x < least ? least : x > most ? most : x; }

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` is a no-op on most of them */
#endif
}

/* --- a number that one side changes and the other waits for ---------------------------------------- */

typedef struct {
    _Alignas(LINE) _Atomic(uint32_t) value;
    _Atomic(uint32_t) sleepers;
    _Alignas(LINE) pthread_mutex_t mutex;
    pthread_cond_t changed;
} number;

static void number_init(number *n) {
    atomic_init(&n->value, 0);
    atomic_init(&n->sleepers, 0);
    pthread_mutex_init(&n->mutex, NULL);
    pthread_cond_init(&n->changed, NULL);
}

static void number_close(number *n) {
    pthread_cond_destroy(&n->changed);
    pthread_mutex_destroy(&n->mutex);
}

/* Wakes those who sleep on a number that was changed before.
 * No wake-up is lost: we change the number, then read `sleepers`; a sleeper raises `sleepers`, then reads
 * the number; all four are sequentially consistent, so one of the two sees the other. */
static void number_wake(number *n) {
    if (atomic_load(&n->sleepers) == 0) return;
    pthread_mutex_lock(&n->mutex);
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

static void number_set(number *n, uint32_t value) {
    atomic_store(&n->value, value);
    number_wake(n);
}

static inline int is_still(number *n, uint32_t old) {
    return atomic_load_explicit(&n->value, memory_order_acquire) == old;
}

static int changes_soon(number *n, uint32_t old, int spin) {
    for (int i = 0; spin && i < FIRST_LOOKS; i++) {
        if (!is_still(n, old)) return 1;
        relax();
    }
    int64_t start = now();
    while (spin && now() - start < SPIN_NANOSECONDS) {
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            if (!is_still(n, old)) return 1;
            relax();
        }
    }
    start = now();
    do {
        if (!is_still(n, old)) return 1;
        sched_yield();
    } while (now() - start < YIELD_NANOSECONDS);
    return 0;
}

/* Nanoseconds that this thread slept of its own will. */
static _Thread_local int64_t slept;

/* Returns once the number is no longer `old`. */
static void number_wait(number *n, uint32_t old, int spin) {
    if (!is_still(n, old) || changes_soon(n, old, spin)) return;
    int64_t start = now();
    pthread_mutex_lock(&n->mutex);
    atomic_fetch_add(&n->sleepers, 1);
    while (atomic_load(&n->value) == old) pthread_cond_wait(&n->changed, &n->mutex);
    atomic_fetch_sub(&n->sleepers, 1);
    pthread_mutex_unlock(&n->mutex);
    slept += now() - start;
}

/* --- the pool ---------------------------------------------------------------------------------------- */

typedef struct pool pool;

typedef struct {
    number start; /* counts the tasks given to this worker */
    pool *owner;
    int32_t index;
    pthread_t thread;
} worker;

struct pool {
    hasten_pool shared; /* first: a hasten_pool* is a pool* */
    pool *next;         /* in `pools` */
    int32_t most;       /* threads, the caller's included */
    int32_t processors;
    int32_t workers_running;
    worker *workers[MOST_THREADS]; /* [i] has index i + 1 */

    _Alignas(LINE) _Atomic(int) busy; /* a caller holds the pool; it alone writes what follows */
    hasten_task task;
    void *argument;
    int spin;    /* there is a core for each thread of the team */
    int closing; /* workers end */
    int watched; /* the task is long enough for it */

    int64_t lost;     /* nanoseconds that other programs took, forgotten in the course of time */
    int32_t left_out; /* threads that are not used because of it */
    int64_t pause;    /* how long it is until one of them is tried again */
    int64_t again;    /* when that is */
    _Alignas(LINE) _Atomic(int64_t) losing; /* nanoseconds that the threads lost in this run */

    _Alignas(LINE) _Atomic(int32_t) arrived; /* at the barrier */
    number door;                             /* of the task: run number, CLOSED, workers that came in */
    _Atomic(int32_t) room;                   /* for so many workers */
    number finished;                         /* counts workers that returned from a task */
    number met;                              /* counts barriers passed */
};

/* The door of a task opens when it is given out and closes when the caller begins; workers that have come
 * in by then are the team. The number of the run stands above, so that nobody enters the next task's door
 * with what it saw of this one's. */
enum { CLOSED = 1 << 15, INSIDE = CLOSED - 1, NEXT_RUN = 1 << 16 };

/* Enters if the door is open; returns the worker's index in the team, or 0, and awaits the closing. */
static int32_t enter(pool *p) {
    uint32_t seen = atomic_load(&p->door.value);
    do {
        /* Who was late for the last task may come to a smaller team's door. A changed `room` goes with a
         * changed run number, and the exchange below fails. */
        if (seen & CLOSED || (int32_t)(seen & INSIDE) >= atomic_load(&p->room)) return 0;
    } while (!atomic_compare_exchange_weak(&p->door.value, &seen, seen + 1));
    number_wake(&p->door); /* the caller may sleep */
    int32_t index = (int32_t)(seen & INSIDE) + 1;
    for (;;) {
        seen = atomic_load(&p->door.value);
        if (seen & CLOSED) return index;
        number_wait(&p->door, seen, 1);
    }
}

/* Runs a thread's share of the task, and notes for how long it wanted to run and could not. */
static void take_part(pool *p, hasten_team *team) {
    if (!p->watched) {
        p->task(p->argument, team);
        return;
    }
    int64_t start = now(), ran = clock_of(CLOCK_THREAD_CPUTIME_ID), asleep = slept;
    p->task(p->argument, team);
    int64_t wanted = now() - start - (slept - asleep);
    int64_t lost = wanted - (clock_of(CLOCK_THREAD_CPUTIME_ID) - ran);
    if (lost > 0) atomic_fetch_add_explicit(&p->losing, lost, memory_order_relaxed);
}

static void *work(void *argument) {
    worker *self = argument;
    pool *p = self->owner;
    int spin = 1;
    for (uint32_t seen = 0;;) {
        number_wait(&self->start, seen, spin);
        seen = atomic_load(&self->start.value);
        if (p->closing) return NULL;
        int32_t index = enter(p);
        if (index == 0) continue; /* too late */
        spin = p->spin;
        int32_t count = (int32_t)(atomic_load(&p->door.value) & INSIDE) + 1;
        hasten_team team = {index, count, &p->shared};
        take_part(p, &team);
        atomic_fetch_add(&p->finished.value, 1);
        number_wake(&p->finished);
    }
}

static void barrier(hasten_team *team) {
    pool *p = (pool *)team->pool;
    uint32_t passed = atomic_load_explicit(&p->met.value, memory_order_relaxed);
    if (atomic_fetch_add(&p->arrived, 1) == team->count - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        number_set(&p->met, passed + 1);
    } else {
        number_wait(&p->met, passed, p->spin);
    }
}

static int start_worker(pool *p, int32_t index) {
    worker *w = NULL;
    if (posix_memalign((void **)&w, LINE, sizeof *w) != 0) return 0;
    number_init(&w->start);
    w->owner = p;
    w->index = index;
    /* signals are for the threads of the program that loaded us */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&w->thread, NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        number_close(&w->start);
        free(w);
        return 0;
    }
    p->workers[index - 1] = w;
    return 1;
}

static void give(pool *p, int32_t workers) {
    for (int32_t i = 0; i < workers; i++) {
        atomic_fetch_add_explicit(&p->workers[i]->start.value, 1, memory_order_release);
    }
    atomic_thread_fence(memory_order_seq_cst); /* between these changes and the looks for sleepers */
    for (int32_t i = 0; i < workers; i++) number_wake(&p->workers[i]->start);
}

/* Waits for the workers, a small part of the task's time, and closes the door. Returns who came in. */
static int32_t gather(pool *p, int32_t workers, int64_t nanoseconds) {
    int64_t patience = clamp(nanoseconds / PATIENCE_PART, LEAST_PATIENCE, MOST_PATIENCE);
    int64_t start = now();
    int looks = 0;
    while ((int32_t)(atomic_load_explicit(&p->door.value, memory_order_acquire) & INSIDE) < workers) {
        relax();
        if (++looks % LOOKS_PER_CLOCK != 0) continue;
        int64_t waited = now() - start;
        if (waited > patience && nanoseconds != INT64_MAX) break;
        if (!p->spin || waited > SPIN_NANOSECONDS) sched_yield();
    }
    uint32_t last = atomic_fetch_or(&p->door.value, CLOSED);
    number_wake(&p->door);
    return (int32_t)(last & INSIDE);
}

/* How many of the threads to use now. */
static int32_t worth_using(pool *p, int32_t threads) {
    if (p->left_out > 0 && now() >= p->again) {
        p->left_out--;
        p->lost = 0;
    }
    return threads > p->left_out ? threads - p->left_out : 1;
}

/* Learns from a run whether the next ones leave out one thread more. */
static void learn(pool *p, int64_t spent) {
    int64_t memory = clamp(spent * MEMORY_RUNS, LEAST_MEMORY, INT64_MAX);
    p->lost -= (int64_t)((double)p->lost * (double)spent / (double)memory);
    p->lost += atomic_exchange(&p->losing, 0);
    int64_t end = now();
    if ((double)p->lost < (double)memory * TOO_MUCH) {
        if (end - p->again > memory) p->pause = 0; /* the last try went well */
        return;
    }
    p->lost = 0;
    p->left_out++;
    p->pause = clamp(p->pause * 2, LEAST_LEFT, MOST_LEFT);
    p->again = end + p->pause;
}

static void run(hasten_pool *shared, int32_t threads, int64_t nanoseconds, hasten_task task, void *argument) {
    pool *p = (pool *)shared;
    if (threads > p->most) threads = p->most;
    if (threads <= 1 || atomic_exchange_explicit(&p->busy, 1, memory_order_acquire)) {
        hasten_team alone = {0, 1, NULL};
        task(argument, &alone);
        return;
    }
    p->watched = nanoseconds >= LEAST_WATCHED && nanoseconds != INT64_MAX;
    if (p->watched) threads = worth_using(p, threads);
    int64_t start = p->watched ? now() : 0;
    while (p->workers_running < threads - 1 && start_worker(p, p->workers_running + 1)) p->workers_running++;
    if (threads > p->workers_running + 1) threads = p->workers_running + 1;

    p->task = task;
    p->argument = argument;
    p->spin = threads <= p->processors;
    uint32_t finished = atomic_load(&p->finished.value);
    atomic_store(&p->room, threads - 1);
    atomic_store(&p->door.value, (atomic_load(&p->door.value) & ~(uint32_t)(NEXT_RUN - 1)) + NEXT_RUN);
    give(p, threads - 1);
    int32_t workers = gather(p, threads - 1, nanoseconds);
    hasten_team team = {0, workers + 1, shared};
    take_part(p, &team);
    for (;;) {
        uint32_t done = atomic_load(&p->finished.value);
        if (done - finished == (uint32_t)workers) break;
        number_wait(&p->finished, done, p->spin);
    }
    if (p->watched && threads > 1) learn(p, now() - start);
    atomic_store_explicit(&p->busy, 0, memory_order_release);
}

/* --- fork -------------------------------------------------------------------------------------------- */

/* The child has only the thread that forked. All its pools become as new; the memory of the workers, whose
 * stacks nobody can unwind, is left. */

static pthread_mutex_t pools_mutex = PTHREAD_MUTEX_INITIALIZER;
static pool *pools;
static int fork_is_handled;

static void reset(pool *p) {
    p->workers_running = 0;
    atomic_init(&p->busy, 0);
    atomic_init(&p->arrived, 0);
    number_init(&p->door);
    atomic_init(&p->door.value, CLOSED);
    number_init(&p->finished);
    number_init(&p->met);
}

static void before_fork(void) { pthread_mutex_lock(&pools_mutex); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&pools_mutex); }

static void after_fork_in_child(void) {
    for (pool *p = pools; p != NULL; p = p->next) reset(p);
    pthread_mutex_unlock(&pools_mutex);
}

/* --- the interface ----------------------------------------------------------------------------------- */

static int32_t count_processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int32_t)online : 1;
}

static void destroy(hasten_pool *shared) {
    pool *p = (pool *)shared;
    pthread_mutex_lock(&pools_mutex);
    for (pool **link = &pools; *link != NULL; link = &(*link)->next) {
        if (*link == p) {
            *link = p->next;
            break;
        }
    }
    pthread_mutex_unlock(&pools_mutex);
    p->closing = 1;
    give(p, p->workers_running);
    for (int32_t i = 0; i < p->workers_running; i++) {
        pthread_join(p->workers[i]->thread, NULL);
        number_close(&p->workers[i]->start);
        free(p->workers[i]);
    }
    number_close(&p->door);
    number_close(&p->finished);
    number_close(&p->met);
    free(p);
}

hasten_pool *hasten_pool_create(int32_t threads) {
    pool *p = NULL;
    if (posix_memalign((void **)&p, LINE, sizeof *p) != 0) return NULL;
    memset(p, 0, sizeof *p);
    p->shared.abi_version = HASTEN_ABI_VERSION;
    p->shared.run = run;
    p->shared.barrier = barrier;
    p->shared.destroy = destroy;
    p->most = threads <= 0 || threads > MOST_THREADS ? MOST_THREADS : threads;
    p->processors = count_processors();
    reset(p);
    pthread_mutex_lock(&pools_mutex);
    if (!fork_is_handled) {
        fork_is_handled = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
    }
    p->next = pools;
    pools = p;
    pthread_mutex_unlock(&pools_mutex);
    return &p->shared;
}

void hasten_pool_destroy(hasten_pool *pool) {
    if (pool != NULL) pool->destroy(pool);
}

int32_t hasten_abi_version(void) { return HASTEN_ABI_VERSION; }
