// Products by the oneDNN of libtorch: for fp32 on the CPU, libtorch itself uses MKL only.

#include "kernels.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>

namespace {

using at::Tensor;
using Scalars = c10::List<std::optional<at::Scalar>>;
using Linear = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, std::string_view, Scalars,
                      std::optional<std::string_view>);
using LinearPlus = Tensor(const Tensor &, const Tensor &, const Tensor &, const std::optional<Tensor> &,
                          std::string_view);

#if defined(__x86_64__)
// oneDNN builds a kernel for each number of rows and caches 1024 of them; libtorch's layer above caches as many
// descriptions for each thread. With ragged batches both took a gigabyte, mostly by fragmentation. A step has about ten
// kernels that blocks share, with two cache entries each. Both variables are read at the first product. They are set here,
// so that tests and other programs need no setup. Before main() no other thread reads them.
__attribute__((constructor)) void limit_kernel_caches() {
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32", 0);
  setenv("LRU_CACHE_CAPACITY", "32", 0);
}
#endif

// Operations of libtorch that its headers do not declare.
struct Operations {
  c10::TypedOperatorHandle<Linear> plain;
  c10::TypedOperatorHandle<LinearPlus> plus;

  Operations() : plain(find("").typed<Linear>()), plus(find("binary").typed<LinearPlus>()) {}

  static c10::OperatorHandle find(const char *overload) {
    return c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", overload);
  }

  static const Operations &get() {
    static const Operations operations;
    return operations;
  }
};

// oneDNN's operations read a bias and a sum as if they were contiguous.
std::optional<Tensor> contiguous(const Tensor *tensor) {
  return tensor ? std::make_optional(tensor->contiguous()) : std::nullopt;
}

} // namespace

extern "C" {

// True if this libtorch has oneDNN's products with these signatures.
bool sepal_linear_is_available() {
  try {
    Operations::get();
    return at::globalContext().hasMKLDNN();
  } catch (const std::exception &) {
    return false;
  }
}

// x [n, in] times weight [in, out], plus bias [out] and sum [n, out] if not null: a new tensor in *out. The caller checks
// that shapes agree and that all tensors are fp32 on the CPU.
char *sepal_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *sum, Tensor **out) {
  return caught([&] {
    const Operations &operations = Operations::get();
    // A new thread uses as many OpenMP threads as there are processors until libtorch limits it.
    at::internal::lazy_init_num_threads();
    *out = new Tensor(sum ? operations.plus.call(*x, *contiguous(sum), weight->t(), contiguous(bias), "add")
                          : operations.plain.call(*x, weight->t(), contiguous(bias), "none", Scalars(), ""));
  });
}
}
