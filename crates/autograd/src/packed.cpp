// Packed matrices, widened to fp32 a few rows at a time and with all threads of libtorch.

#include "packed_rows.h"

#include <vector>

namespace {

// Parameters of an encoding: numbers that share a factor, and the levels of NF4.
struct Format {
  int64_t group;
  const float *levels;
};

using RowFunction = void (*)(const uint8_t *in, float *out, int64_t width, const Format &format);

#define SEPAL_BLOCKS(name, Block)                                                                                       \
  SEPAL_CLONES void name(const uint8_t *in, float *out, int64_t width, const Format &) {                               \
    for (int64_t i = 0; i < width / Block::LEN; i++)                                                                    \
      Block::widen(in + i * Block::BYTES, out + i * Block::LEN);                                                        \
  }

SEPAL_BLOCKS(q4_0, Q4_0)
SEPAL_BLOCKS(q4_1, Q4_1)
SEPAL_BLOCKS(q5_0, Q5_0)
SEPAL_BLOCKS(q5_1, Q5_1)
SEPAL_BLOCKS(q8_0, Q8_0)
SEPAL_BLOCKS(q2k, Q2K)
SEPAL_BLOCKS(q3k, Q3K)
SEPAL_BLOCKS(q4k, Q4K)
SEPAL_BLOCKS(q5k, Q5K)
SEPAL_BLOCKS(q6k, Q6K)
SEPAL_BLOCKS(mxfp4, Mxfp4)

SEPAL_CLONES void f16(const uint8_t *in, float *out, int64_t width, const Format &) {
  for (int64_t j = 0; j < width; j++) {
    uint16_t half;
    std::memcpy(&half, in + 2 * j, sizeof half);
    out[j] = half_of(half);
  }
}

SEPAL_CLONES void bf16(const uint8_t *in, float *out, int64_t width, const Format &) {
  for (int64_t j = 0; j < width; j++) {
    uint16_t half;
    std::memcpy(&half, in + 2 * j, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(out + j, &bits, sizeof bits);
  }
}

SEPAL_CLONES void int8(const uint8_t *in, float *out, int64_t width, const Format &) {
  const float scale = float_at(in);
  for (int64_t j = 0; j < width; j++)
    out[j] = static_cast<float>(static_cast<int8_t>(in[4 + j])) * scale;
}

SEPAL_CLONES void nf4(const uint8_t *in, float *out, int64_t width, const Format &format) {
  for (int64_t start = 0; start < width; start += Nf4::LEN, in += Nf4::BYTES)
    Nf4::widen(format.levels, in, out + start, std::min(Nf4::LEN, width - start));
}

SEPAL_CLONES void fp8(const uint8_t *in, float *out, int64_t width, const Format &format) {
  for (int64_t start = 0; start < width; start += format.group) {
    const int64_t n = std::min(format.group, width - start);
    const float scale = float_at(in);
    for (int64_t j = 0; j < n; j++)
      out[start + j] = e4m3(in[4 + j]) * scale;
    in += 4 + n;
  }
}

// Factor and zero of a group.
struct Header {
  float scale;
  int zero;
  explicit Header(const uint8_t *in) : scale(float_at(in)) {
    int16_t number;
    std::memcpy(&number, in + 4, sizeof number);
    zero = number;
  }
};

SEPAL_CLONES void int4(const uint8_t *in, float *out, int64_t width, const Format &format) {
  for (int64_t start = 0; start < width; start += format.group) {
    const int64_t n = std::min(format.group, width - start);
    const Header header(in);
    for (int64_t j = 0; j < n / 2; j++) {
      out[start + 2 * j] = static_cast<float>((in[6 + j] & 15) - header.zero) * header.scale;
      out[start + 2 * j + 1] = static_cast<float>((in[6 + j] >> 4) - header.zero) * header.scale;
    }
    if (n % 2 != 0)
      out[start + n - 1] = static_cast<float>((in[6 + n / 2] & 15) - header.zero) * header.scale;
    in += 6 + (n + 1) / 2;
  }
}

SEPAL_CLONES void uint8(const uint8_t *in, float *out, int64_t width, const Format &format) {
  for (int64_t start = 0; start < width; start += format.group) {
    const int64_t n = std::min(format.group, width - start);
    const Header header(in);
    for (int64_t j = 0; j < n; j++)
      out[start + j] = static_cast<float>(in[6 + j] - header.zero) * header.scale;
    in += 6 + n;
  }
}

// In the order of `code` in packed.rs.
constexpr RowFunction FUNCTIONS[] = {q4_0, q4_1, q5_0, q5_1, q8_0, q2k, q3k, q4k, q5k, q6k, mxfp4, int8, nf4, fp8, int4, uint8, f16, bf16};
constexpr int64_t N_FUNCTIONS = sizeof(FUNCTIONS) / sizeof(FUNCTIONS[0]);

SEPAL_CLONES void scale_row(float *out, const float *columns, int64_t width) {
  for (int64_t j = 0; j < width; j++)
    out[j] *= columns[j];
}

void check(const at::Tensor &tensor, at::ScalarType type, const char *name) {
  TORCH_CHECK(tensor.scalar_type() == type && tensor.device().is_cpu() && tensor.is_contiguous(), "expected ", name,
              " of ", type, ", contiguous on the CPU");
}

// True if there are numbers for each column; none are an empty tensor.
bool has_columns(const at::Tensor &tensor, int64_t width, const char *name) {
  TORCH_CHECK(tensor.numel() == 0 || tensor.numel() == width, "expected ", name, " of ", width, " columns");
  return tensor.numel() > 0;
}

} // namespace

extern "C" {

// Widens rows [n, bytes of a row], which may have gaps between them, into out [n, width]. Column j becomes that with the
// index order[j], times columns[j]. The caller checks that a row of this width has this number of bytes.
char *sepal_widen(const at::Tensor *rows, const at::Tensor *levels, const at::Tensor *columns, const at::Tensor *order,
                  const at::Tensor *out, int64_t code, int64_t group) {
  return caught([&] {
    TORCH_CHECK(rows->scalar_type() == at::kByte && rows->device().is_cpu() && rows->dim() == 2 && rows->stride(1) == 1,
                "expected rows of bytes on the CPU");
    check(*levels, at::kFloat, "levels");
    check(*columns, at::kFloat, "factors");
    check(*order, at::kLong, "an order");
    check(*out, at::kFloat, "an output");
    TORCH_CHECK(out->dim() == 2 && rows->size(0) == out->size(0), "expected matrices of equal rows");
    TORCH_CHECK(code >= 0 && code < N_FUNCTIONS && group > 0 && levels->numel() == 16, "unknown encoding");
    const int64_t n = out->size(0), width = out->size(1), row_bytes = rows->stride(0);
    const bool is_scaled = has_columns(*columns, width, "factors"), is_ordered = has_columns(*order, width, "an order");
    const int64_t *indices = order->data_ptr<int64_t>();
    for (int64_t j = 0; is_ordered && j < width; j++)
      TORCH_CHECK(indices[j] >= 0 && indices[j] < width, "an index is outside of the row");
    const RowFunction widen = FUNCTIONS[code];
    const Format format{group, levels->data_ptr<float>()};
    for_rows(n, width, [&](int64_t from, int64_t to) {
      std::vector<float> scratch(is_ordered ? width : 0);
      for (int64_t i = from; i < to; i++) {
        const uint8_t *in = rows->data_ptr<uint8_t>() + i * row_bytes;
        float *numbers = out->data_ptr<float>() + i * width;
        widen(in, is_ordered ? scratch.data() : numbers, width, format);
        for (int64_t j = 0; is_ordered && j < width; j++)
          numbers[j] = scratch[indices[j]];
        if (is_scaled)
          scale_row(numbers, columns->data_ptr<float>(), width);
      }
    });
  });
}
}
