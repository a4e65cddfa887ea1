// A tensor over memory of another owner, and settings of the heap.

#include <torch/csrc/autograd/variable.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" {

// A CPU tensor over `data`, row-major, in the number format of `like`. Takes over `owner` on success and on failure: `drop`
// is called once, with the last tensor that shares the memory. Returns a new tensor, or null and *error.
at::Tensor *sepal_tensor_from_memory(void *data, const int64_t *shape, size_t n_dims, const at::Tensor *like,
                              void *owner, void (*drop)(void *owner), char **error) {
  try {
    std::shared_ptr<void> guard(owner, drop);
    return new at::Tensor(at::from_blob(data, at::IntArrayRef(shape, n_dims), [guard](void *) {}, like->options()));
  } catch (const std::exception &e) {
    *error = strdup(e.what());
    return nullptr;
  }
}

// Memory of this size and more is a mapping of its own, which is returned to the system when it is freed, up to a number of
// mappings that is half of Linux's default for a process. Has no effect without glibc.
void sepal_map_memory_from(int32_t bytes) {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, bytes);
  mallopt(M_MMAP_MAX, 1 << 15);
#else
  (void)bytes;
#endif
}
}
