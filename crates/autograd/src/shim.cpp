// One custom node of libtorch's autograd graph whose backward is a callback.
//
// Uses only the public torch::autograd::Function: internals of Node change between versions.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
// Fills grads[0..n] with new tensors or null; returns null, or an error text allocated by malloc.
typedef char *(*sepal_backward_fn)(void *state, const at::Tensor *grad_output, at::Tensor **grads, size_t n);
typedef void (*sepal_drop_fn)(void *state);
}

namespace {

// Owns the callback and lives as long as the graph.
struct Closure : torch::CustomClassHolder {
  void *state;
  sepal_backward_fn call;
  sepal_drop_fn drop;
  size_t n_inputs;

  Closure(void *state, sepal_backward_fn call, sepal_drop_fn drop, size_t n_inputs)
      : state(state), call(call), drop(drop), n_inputs(n_inputs) {}
  ~Closure() override { drop(state); }
};

struct Outside : torch::autograd::Function<Outside> {
  static at::Tensor forward(torch::autograd::AutogradContext *ctx, at::TensorList inputs,
                            c10::intrusive_ptr<Closure> closure, const at::Tensor *output) {
    ctx->saved_data["closure"] = c10::IValue::make_capsule(closure);
    return *output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx,
                                                 torch::autograd::variable_list grad_outputs) {
    auto closure = c10::static_intrusive_pointer_cast<Closure>(ctx->saved_data["closure"].toCapsule());
    std::vector<at::Tensor *> grads(closure->n_inputs, nullptr);
    char *error = closure->call(closure->state, &grad_outputs[0], grads.data(), grads.size());
    // Two more entries than tensors: the other arguments of forward have no gradient.
    torch::autograd::variable_list result(closure->n_inputs + 2);
    for (size_t i = 0; i < grads.size(); i++) {
      if (grads[i] != nullptr) {
        result[i] = *grads[i];
        delete grads[i];
      }
    }
    if (error != nullptr) {
      std::string text(error);
      free(error);
      throw std::runtime_error(text);
    }
    return result;
  }
};

} // namespace

extern "C" {

// Takes over `state` on success and on failure. Returns a new tensor, or null and *error.
at::Tensor *sepal_autograd_attach(const at::Tensor *const *inputs, size_t n_inputs, const at::Tensor *output,
                                  void *state, sepal_backward_fn call, sepal_drop_fn drop, char **error) {
  try {
    auto closure = c10::make_intrusive<Closure>(state, call, drop, n_inputs);
    std::vector<at::Tensor> list;
    list.reserve(n_inputs);
    for (size_t i = 0; i < n_inputs; i++) {
      list.push_back(*inputs[i]);
    }
    return new at::Tensor(Outside::apply(at::TensorList(list), closure, output));
  } catch (const std::exception &e) {
    *error = strdup(e.what());
    return nullptr;
  }
}

char *sepal_autograd_error(const char *text, size_t length) { return strndup(text, length); }

void sepal_autograd_free(char *text) { free(text); }
}
