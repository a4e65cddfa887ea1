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

// oneDNN makes a kernel for each number of rows and keeps 1024 of them, libtorch's layer above it as many descriptions:
// with ragged batches that came to a gigabyte, most of it holes between activations. A step needs about ten of each.
// Both read their setting when they are first used; before main() nobody else reads the environment.
__attribute__((constructor)) void keep_few_kernels() {
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "24", 0);
  setenv("LRU_CACHE_CAPACITY", "24", 0);
}

c10::OperatorHandle operation(const char *overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", overload);
}

std::optional<Tensor> given(const Tensor *tensor) { return tensor ? std::make_optional(*tensor) : std::nullopt; }

} // namespace

extern "C" {

// Whether this libtorch has oneDNN's products.
bool sepal_linear_there() {
  return at::globalContext().hasMKLDNN() &&
         c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}).has_value() &&
         c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", "binary"}).has_value();
}

// x [n, in] times weight [in, out], plus bias [out] and sum [n, out] where they are not null: a new tensor in *out.
char *sepal_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, const Tensor *sum, Tensor **out) {
  return caught([&] {
    static const auto plain = operation("").typed<Linear>();
    static const auto plus = operation("binary").typed<LinearPlus>();
    TORCH_CHECK(x->dim() == 2 && weight->dim() == 2 && x->size(1) == weight->size(0), "shapes ", x->sizes(), " and ",
                weight->sizes(), " cannot be multiplied");
    TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight->size(1)), "a bias of shape ", bias->sizes());
    TORCH_CHECK(!sum || (sum->dim() == 2 && sum->size(0) == x->size(0) && sum->size(1) == weight->size(1)),
                "a sum of shape ", sum->sizes());
    // A new thread has as many threads as there are processors until libtorch has told it otherwise.
    at::internal::lazy_init_num_threads();
    const at::NoGradGuard frozen;
    *out = new Tensor(sum ? plus.call(*x, *sum, weight->t(), given(bias), "add")
                          : plain.call(*x, weight->t(), given(bias), "none", Scalars(), ""));
  });
}
}
