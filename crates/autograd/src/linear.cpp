// Products by oneDNN, which is in libtorch: for fp32 on the CPU libtorch itself asks MKL alone.

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
// oneDNN makes a kernel for each number of rows and keeps 1024 of them, libtorch's layer above it as many descriptions for
// each thread: with ragged batches that came to a gigabyte, most of it holes between activations. A step has about ten
// kernels that blocks share, which take two places each. Both settings are read when a first product is made; they are
// made here, not where programs start, for tests and for programs of others. Before main() no other thread reads them.
__attribute__((constructor)) void keep_few_kernels() {
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32", 0);
  setenv("LRU_CACHE_CAPACITY", "32", 0);
}
#endif

// libtorch's operations, which its own header does not have.
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

// oneDNN's operations read a bias and a sum as if they were in one piece.
std::optional<Tensor> given(const Tensor *tensor) {
  return tensor ? std::make_optional(tensor->contiguous()) : std::nullopt;
}

} // namespace

extern "C" {

// Whether this libtorch has oneDNN's products, as they are called here.
bool sepal_linear_there() {
  try {
    Operations::get();
    return at::globalContext().hasMKLDNN();
  } catch (const std::exception &) {
    return false;
  }
}

// x [n, in] times weight [in, out], plus bias [out] and sum [n, out] where they are not null: a new tensor in *out. The
// caller has checked shapes, and that all is fp32 on the CPU.
char *sepal_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *sum, Tensor **out) {
  return caught([&] {
    const Operations &operations = Operations::get();
    // A new thread has as many threads as there are processors until libtorch has told it otherwise.
    at::internal::lazy_init_num_threads();
    *out = new Tensor(sum ? operations.plus.call(*x, *given(sum), weight->t(), given(bias), "add")
                          : operations.plain.call(*x, weight->t(), given(bias), "none", Scalars(), ""));
  });
}
}
