// Common parts of the kernels: clones for processors, ranges for threads, errors as text.

#pragma once

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// A clone of each kernel for each instruction set.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SEPAL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SEPAL_CLONES
#endif

namespace {

// Minimum of numbers for one thread.
constexpr int64_t GRAIN = 16384;

template <typename F> void for_rows(int64_t n, int64_t width, const F &f) {
  at::parallel_for(0, n, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, width)), f);
}

// Runs `f` and returns null, or the text of an exception, which the caller frees.
template <typename F> char *caught(const F &f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}

} // namespace
