/* OpenMP's loops on the threads that ONNX Runtime has already: a second pool beside them would fight for the cores. */
#ifndef MMSCCONV_THREADS_H
#define MMSCCONV_THREADS_H

#include "interface.h"

/* Let the loops that this thread comes to run on the threads behind `context`. */
void borrow_threads(const Api *api, const Context *context);

/* Stop it; return what went wrong in between, or NULL. */
Status *give_threads_back(void);

/* The number of parts into which loops are cut: the processors that this process may use. */
int processors(void);

#endif
