// Element-wise steps of transformer blocks, each in one pass over memory and with all threads of libtorch.
//
// Matrices are fp32. The last dimension is contiguous, rows may have gaps between them.

#include "kernels.h"

#include <cmath>

namespace {

struct Rows {
  float *data;
  int64_t n, width, stride;

  float *row(int64_t i) const { return data + i * stride; }
};

Rows rows_of(const at::Tensor &tensor) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(),
              "expected a matrix of fp32 on the CPU");
  TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, "expected contiguous rows");
  return {tensor.data_ptr<float>(), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

// e^x to 2 units in the last place, without a call, so that loops over it are vectorized: 2^n e^r with
// r in [-ln 2 / 2, ln 2 / 2], and e^r by its Taylor series.
inline __attribute__((always_inline)) float exp_of(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number
  const float n = (x * 1.44269504088896341f + magic) - magic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float e = 1.0f / 5040.0f;
  e = e * r + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return e * power;
}

SEPAL_CLONES void rms_norm_rows(const Rows &x, const Rows &y, float *scales, float eps, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *in = x.row(i);
    float *out = y.row(i), squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < x.width; j++)
      squares += in[j] * in[j];
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(x.width) + eps);
    scales[i] = scale;
    for (int64_t j = 0; j < x.width; j++)
      out[j] = in[j] * scale;
  }
}

// With y = x s: dx = s (dy - x s^2 mean(dy x)).
SEPAL_CLONES void rms_norm_backward_rows(const Rows &grad, const Rows &x, const float *scales, const Rows &sum,
                                     int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *dy = grad.row(i), *in = x.row(i);
    float *out = sum.row(i), dot = 0;
    const float scale = scales[i];
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < x.width; j++)
      dot += dy[j] * in[j];
    const float along = dot * scale * scale * scale / static_cast<float>(x.width);
    for (int64_t j = 0; j < x.width; j++)
      out[j] += dy[j] * scale - in[j] * along;
  }
}

SEPAL_CLONES void layer_norm_rows(const Rows &x, const Rows &y, float *means, float *scales, float eps, int64_t from,
                                  int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *in = x.row(i);
    const float width = static_cast<float>(x.width);
    float *out = y.row(i), total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < x.width; j++)
      total += in[j];
    const float mean = total / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < x.width; j++)
      squares += (in[j] - mean) * (in[j] - mean);
    const float scale = 1.0f / std::sqrt(squares / width + eps);
    means[i] = mean;
    scales[i] = scale;
    for (int64_t j = 0; j < x.width; j++)
      out[j] = (in[j] - mean) * scale;
  }
}

// With y = (x - m) s: dx = s (dy - mean(dy) - y mean(dy y)).
SEPAL_CLONES void layer_norm_backward_rows(const Rows &grad, const Rows &x, const float *means, const float *scales,
                                       const Rows &sum, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *dy = grad.row(i), *in = x.row(i);
    const float width = static_cast<float>(x.width);
    const float mean = means[i], scale = scales[i];
    float *out = sum.row(i), total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
    for (int64_t j = 0; j < x.width; j++) {
      total += dy[j];
      dot += dy[j] * (in[j] - mean);
    }
    const float level = total / width, along = dot * scale * scale / width;
    for (int64_t j = 0; j < x.width; j++)
      out[j] += scale * (dy[j] - level - (in[j] - mean) * along);
  }
}

SEPAL_CLONES void silu_mul_rows(const Rows &gate_up, const Rows &out, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *gate = gate_up.row(i), *up = gate + out.width;
    float *result = out.row(i);
    for (int64_t j = 0; j < out.width; j++)
      result[j] = gate[j] / (1.0f + exp_of(-gate[j])) * up[j];
  }
}

SEPAL_CLONES void silu_mul_backward_rows(const Rows &grad, const Rows &gate_up, const Rows &out, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++) {
    const float *dy = grad.row(i), *gate = gate_up.row(i), *up = gate + grad.width;
    float *dgate = out.row(i), *dup = dgate + grad.width;
    for (int64_t j = 0; j < grad.width; j++) {
      const float g = gate[j], sigmoid = 1.0f / (1.0f + exp_of(-g));
      dgate[j] = dy[j] * up[j] * sigmoid * (1.0f + g * (1.0f - sigmoid));
      dup[j] = dy[j] * g * sigmoid;
    }
  }
}

SEPAL_CLONES void rotate_rows(const Rows &x, const Rows &cos, const Rows &sin, int64_t head_dim, float sign,
                              int64_t from, int64_t to) {
  const int64_t half = cos.width;
  for (int64_t i = from; i < to; i++) {
    const float *c = cos.row(i), *s = sin.row(i);
    for (int64_t head = 0; head + head_dim <= x.width; head += head_dim) {
      float *first = x.row(i) + head, *second = first + half;
      for (int64_t j = 0; j < half; j++) {
        const float a = first[j], b = second[j], sine = sign * s[j];
        first[j] = a * c[j] - b * sine;
        second[j] = b * c[j] + a * sine;
      }
    }
  }
}

void check_same(const Rows &a, const Rows &b) {
  TORCH_CHECK(a.n == b.n && a.width == b.width, "expected matrices of the same shape");
}

// One number for each row of `matrix`.
float *row_stats(const Rows &matrix, const at::Tensor &tensor) {
  const Rows rows = rows_of(tensor);
  TORCH_CHECK(rows.n == matrix.n && rows.width == 1 && (rows.n <= 1 || rows.stride == 1), "expected one number for each row");
  return rows.data;
}

} // namespace

extern "C" {

char *sepal_fused_rms_norm(const at::Tensor *x, const at::Tensor *y, const at::Tensor *scales, double eps) {
  return caught([&] {
    const Rows in = rows_of(*x), out = rows_of(*y);
    check_same(in, out);
    float *s = row_stats(in, *scales);
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) {
      rms_norm_rows(in, out, s, static_cast<float>(eps), from, to);
    });
  });
}

char *sepal_fused_rms_norm_backward(const at::Tensor *grad, const at::Tensor *x, const at::Tensor *scales,
                                const at::Tensor *sum) {
  return caught([&] {
    const Rows dy = rows_of(*grad), in = rows_of(*x), out = rows_of(*sum);
    check_same(dy, in);
    check_same(in, out);
    const float *s = row_stats(in, *scales);
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) { rms_norm_backward_rows(dy, in, s, out, from, to); });
  });
}

char *sepal_fused_layer_norm(const at::Tensor *x, const at::Tensor *y, const at::Tensor *means,
                             const at::Tensor *scales, double eps) {
  return caught([&] {
    const Rows in = rows_of(*x), out = rows_of(*y);
    check_same(in, out);
    float *m = row_stats(in, *means), *s = row_stats(in, *scales);
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) {
      layer_norm_rows(in, out, m, s, static_cast<float>(eps), from, to);
    });
  });
}

char *sepal_fused_layer_norm_backward(const at::Tensor *grad, const at::Tensor *x, const at::Tensor *means,
                                  const at::Tensor *scales, const at::Tensor *sum) {
  return caught([&] {
    const Rows dy = rows_of(*grad), in = rows_of(*x), out = rows_of(*sum);
    check_same(dy, in);
    check_same(in, out);
    const float *m = row_stats(in, *means), *s = row_stats(in, *scales);
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) { layer_norm_backward_rows(dy, in, m, s, out, from, to); });
  });
}

char *sepal_fused_silu_mul(const at::Tensor *gate_up, const at::Tensor *y) {
  return caught([&] {
    const Rows in = rows_of(*gate_up), out = rows_of(*y);
    TORCH_CHECK(in.n == out.n && in.width == 2 * out.width, "expected gate and up side by side");
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) { silu_mul_rows(in, out, from, to); });
  });
}

char *sepal_fused_silu_mul_backward(const at::Tensor *grad, const at::Tensor *gate_up, const at::Tensor *y) {
  return caught([&] {
    const Rows dy = rows_of(*grad), in = rows_of(*gate_up), out = rows_of(*y);
    check_same(in, out);
    TORCH_CHECK(dy.n == in.n && in.width == 2 * dy.width, "expected gate and up side by side");
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) { silu_mul_backward_rows(dy, in, out, from, to); });
  });
}

char *sepal_fused_rotate(const at::Tensor *x, const at::Tensor *cos, const at::Tensor *sin, int64_t head_dim,
                         double sign) {
  return caught([&] {
    const Rows in = rows_of(*x), c = rows_of(*cos), s = rows_of(*sin);
    check_same(c, s);
    TORCH_CHECK(in.n == c.n && head_dim > 0 && in.width % head_dim == 0 && 2 * c.width <= head_dim,
                "expected heads, and rotations for each row");
    for_rows(in.n, in.width, [&](int64_t from, int64_t to) {
      rotate_rows(in, c, s, head_dim, static_cast<float>(sign), from, to);
    });
  });
}
}
