/* Replays recorded calls of the kernels: replay RECORDING RESULTS THREADS... makes all calls with each number of threads
 * and writes their memory after each call. entries.h is made from kernels.h, the recording by program.py.
 *
 * Each piece of memory ends where a page begins that nobody may touch, and values that nobody may change lie before it:
 * a kernel that goes beyond its tensors is found. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

enum { INTEGER, REAL, POINTER, NULL_POINTER };

typedef struct {
    int64_t integer;
    double real;
    void *pointer;
} Argument;

typedef struct {
    const char *name;
    int (*run)(const Argument *a, int threads);
} Entry;

#include "entries.h"

#define MOST 64         /* arguments or regions of a call */
#define UNTOUCHED 0xA5

typedef struct {
    char *pages, *data;
    int64_t mapped, bytes, before;
} Region;

static const char *volatile now = "no call";
static volatile long number;

static void fail(const char *what) {
    fprintf(stderr, "call %ld, %s: %s\n", number, now, what);
    exit(2);
}

static void on_signal(int signal) {
    dprintf(STDERR_FILENO, "call %ld, %s: signal %d%s\n", number, now, signal,
            signal == SIGSEGV || signal == SIGBUS ? ", memory beyond a tensor was touched" : "");
    _exit(2);
}

static void read_bytes(FILE *from, void *to, int64_t bytes) {
    if (bytes && fread(to, (size_t)bytes, 1, from) != 1) fail("the recording ends too early");
}

static int64_t read_integer(FILE *from) {
    int64_t value;
    read_bytes(from, &value, sizeof value);
    return value;
}

static Region read_region(FILE *from) {
    int64_t page = sysconf(_SC_PAGESIZE), bytes = read_integer(from), data = (bytes / page + 1) * page;
    Region r = {NULL, NULL, data + page, bytes, data - bytes};
    r.pages = mmap(NULL, (size_t)r.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r.pages == MAP_FAILED || mprotect(r.pages + data, (size_t)page, PROT_NONE)) fail("no memory");
    memset(r.pages, UNTOUCHED, (size_t)r.before);
    r.data = r.pages + r.before;
    read_bytes(from, r.data, bytes);
    return r;
}

static void write_region(Region r, FILE *to) {
    for (int64_t i = 0; i < r.before; i++)
        if ((unsigned char)r.pages[i] != UNTOUCHED) fail("memory before a tensor was changed");
    if (r.bytes && fwrite(r.data, (size_t)r.bytes, 1, to) != 1) fail("the results cannot be written");
    munmap(r.pages, (size_t)r.mapped);
}

static Argument read_argument(FILE *from, const Region *regions) {
    int64_t kind = read_integer(from), value = read_integer(from);
    Argument a = {.integer = value};
    if (kind == REAL) memcpy(&a.real, &value, sizeof value);
    if (kind == POINTER) a.pointer = regions[value].data + read_integer(from);
    return a;
}

static void replay(FILE *from, int threads, FILE *to) {
    int64_t calls = read_integer(from);
    for (number = 0; number < calls; number++) {
        Region regions[MOST];
        Argument arguments[MOST];
        const Entry *entry = &ENTRIES[read_integer(from)];
        now = entry->name;
        int64_t count = read_integer(from);
        for (int64_t i = 0; i < count; i++) regions[i] = read_region(from);
        int64_t amount = read_integer(from);
        for (int64_t i = 0; i < amount; i++) arguments[i] = read_argument(from, regions);
        if (entry->run(arguments, threads)) fail("no memory for its workspace");
        for (int64_t i = 0; i < count; i++) write_region(regions[i], to);
    }
}

int main(int count, char **given) {
    FILE *to = count > 3 ? fopen(given[2], "wb") : NULL;
    if (!to) fail("usage: replay RECORDING RESULTS THREADS...");
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGILL, on_signal);
    for (int i = 3; i < count; i++) {
        FILE *from = fopen(given[1], "rb");
        if (!from) fail("the recording cannot be read");
        replay(from, atoi(given[i]), to);
        fclose(from);
    }
    if (fclose(to)) fail("the results cannot be written");
    return 0;
}
