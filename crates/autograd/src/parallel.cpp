// Work of several threads.

#include "kernels.h"

extern "C" {

// Divides 0..n into ranges, one for each of libtorch's threads, and calls `body` with each, in that thread. Operations of
// libtorch in it use that thread alone.
char *sepal_parallel_for(int64_t n, void (*body)(const void *context, int64_t from, int64_t to), const void *context) {
  return caught([&] { at::parallel_for(0, n, 1, [&](int64_t from, int64_t to) { body(context, from, to); }); });
}
}
