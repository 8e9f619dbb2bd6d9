/* OpenMP's loops on ONNX Runtime's threads: a second pool of threads would fight for the cores. */
#ifndef MMSCCONV_THREADS_H
#define MMSCCONV_THREADS_H

#include "interface.h"

/* Let this thread's loops run on the threads behind `context`. */
void borrow_threads(const Api *api, const Context *context);

/* Stop borrowing; return an error from in between, or NULL. */
Status *give_threads_back(void);

/* The number of parts that loops are cut into: the processors that this process may use. */
int processors(void);

#endif
