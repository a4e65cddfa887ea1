// Tensors as structures of DLPack, which other users of this process's libtorch read without a copy.

#include "kernels.h"

#include <ATen/DLConvertor.h>

extern "C" {

// Shares the memory of `tensor`: a new structure in *out.
char *sepal_dlpack_from_tensor(const at::Tensor *tensor, DLManagedTensor **out) {
  return caught([&] { *out = at::toDLPack(*tensor); });
}

// Takes over `source` on success only: a new tensor in *out.
char *sepal_dlpack_to_tensor(DLManagedTensor *source, at::Tensor **out) {
  return caught([&] { *out = new at::Tensor(at::fromDLPack(source)); });
}

void sepal_dlpack_free(DLManagedTensor *source) {
  if (source->deleter != nullptr)
    source->deleter(source);
}
}
