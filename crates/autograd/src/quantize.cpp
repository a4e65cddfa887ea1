// Weights in 8 and in 4 bits, dequantized to fp32 in one pass over memory and with all threads of libtorch.

#include "kernels.h"

namespace {

// Numbers that share a scale in NF4, and their size in bytes: byte j holds the numbers j and j + BYTES.
constexpr int64_t GROUP = 64, BYTES = GROUP / 2;

SEPAL_CLONES void int8_rows(const int8_t *quantized, const float *scales, const float *columns, float *out, int64_t width,
                            int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const int8_t *in = quantized + i * width;
    float *numbers = out + i * width;
    const float scale = scales[i];
    for (int64_t j = 0; j < width; j++)
      numbers[j] = static_cast<float>(in[j]) * scale * columns[j];
  }
}

void nf4_rows(const uint8_t *quantized, const float *scales, const float *levels, const float *columns, float *out,
              int64_t width, int64_t from, int64_t to) {
  const int64_t groups = (width + GROUP - 1) / GROUP;
  for (int64_t i = from; i < to; i++) {
    for (int64_t group = 0; group < groups; group++) {
      const uint8_t *in = quantized + (i * groups + group) * BYTES;
      float *numbers = out + i * width + group * GROUP;
      const float *factors = columns + group * GROUP;
      const int64_t n = std::min(GROUP, width - group * GROUP);
      const float scale = scales[i * groups + group];
      float scaled[16];
      for (int level = 0; level < 16; level++)
        scaled[level] = levels[level] * scale;
      for (int64_t j = 0; j < std::min(BYTES, n); j++)
        numbers[j] = scaled[in[j] & 15] * factors[j];
      for (int64_t j = BYTES; j < n; j++)
        numbers[j] = scaled[in[j - BYTES] >> 4] * factors[j];
    }
  }
}

void check(const at::Tensor &tensor, at::ScalarType type, int64_t numel) {
  TORCH_CHECK(tensor.scalar_type() == type && tensor.device().is_cpu() && tensor.is_contiguous() &&
                  tensor.numel() == numel,
              "expected ", numel, " numbers of ", type, ", contiguous on the CPU");
}

} // namespace

extern "C" {

char *sepal_dequantize_int8(const at::Tensor *quantized, const at::Tensor *scales, const at::Tensor *columns,
                       const at::Tensor *out) {
  return caught([&] {
    TORCH_CHECK(out->dim() == 2, "expected a matrix");
    const int64_t n = out->size(0), width = out->size(1);
    check(*quantized, at::kChar, n * width);
    check(*scales, at::kFloat, n);
    check(*columns, at::kFloat, width);
    check(*out, at::kFloat, n * width);
    for_rows(n, width, [&](int64_t from, int64_t to) {
      int8_rows(quantized->data_ptr<int8_t>(), scales->data_ptr<float>(), columns->data_ptr<float>(),
                out->data_ptr<float>(), width, from, to);
    });
  });
}

char *sepal_dequantize_nf4(const at::Tensor *quantized, const at::Tensor *scales, const at::Tensor *levels,
                      const at::Tensor *columns, const at::Tensor *out) {
  return caught([&] {
    TORCH_CHECK(out->dim() == 2, "expected a matrix");
    const int64_t n = out->size(0), width = out->size(1), groups = (width + GROUP - 1) / GROUP;
    check(*quantized, at::kByte, n * groups * BYTES);
    check(*scales, at::kFloat, n * groups);
    check(*levels, at::kFloat, 16);
    check(*columns, at::kFloat, width);
    check(*out, at::kFloat, n * width);
    for_rows(n, width, [&](int64_t from, int64_t to) {
      nf4_rows(quantized->data_ptr<uint8_t>(), scales->data_ptr<float>(), levels->data_ptr<float>(),
               columns->data_ptr<float>(), out->data_ptr<float>(), width, from, to);
    });
  });
}
}
