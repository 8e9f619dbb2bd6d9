/* The three functions that GCC calls for `#pragma omp parallel for schedule(static)`. They are hidden, so that a real
 * OpenMP in the same process keeps its own. */
#ifdef __clang__
#error "clang calls other functions for these loops: set CC to a GCC"
#endif
#define _GNU_SOURCE
#include "threads.h"

#include <sched.h>

#define HIDDEN __attribute__((visibility("hidden")))

typedef struct {
    void (*body)(void *data);
    void *data;
    int threads;
} Team;

static _Thread_local struct {
    const Api *api;
    const Context *context;
    Status *status;
} borrowed;
static _Thread_local int number, team_size = 1;

static void run(const Team *team, int index) {
    int outer_number = number, outer_size = team_size;
    number = index;
    team_size = team->threads;
    team->body(team->data);
    number = outer_number;
    team_size = outer_size;
}

static void work(void *team, size_t index) { run(team, (int)index); }

HIDDEN int omp_get_thread_num(void) { return number; }

HIDDEN int omp_get_num_threads(void) { return team_size; }

HIDDEN void GOMP_parallel(void (*body)(void *data), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    Team team = {body, data, (int)threads};
    if (threads == 1) /* may be nested in another loop, on a thread that has borrowed nothing */
        run(&team, 0);
    else if (!borrowed.status)
        borrowed.status = borrowed.api->parallel_for(borrowed.context, work, threads, 0, &team);
}

HIDDEN void borrow_threads(const Api *api, const Context *context) {
    borrowed.api = api;
    borrowed.context = context;
    borrowed.status = NULL;
}

HIDDEN Status *give_threads_back(void) {
    borrowed.context = NULL;
    return borrowed.status;
}

HIDDEN int processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}
