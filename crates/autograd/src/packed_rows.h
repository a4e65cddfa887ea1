// Rows of packed matrices, widened to fp32: one function for each encoding.
//
// Each computes a number by the same operations in the same order as the reference of its format, so that results are
// equal to the bit. Products that are added to are exact (at most 22 bits), so that a fused multiplication and addition, which
// the compiler may choose, rounds as two operations.

#pragma once

#include "kernels.h"

#include <c10/util/Half.h>

#include <cmath>
#include <limits>

namespace {

inline __attribute__((always_inline)) float half_at(const uint8_t *bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

inline __attribute__((always_inline)) float float_at(const uint8_t *bytes) {
  float number;
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

inline __attribute__((always_inline)) uint32_t word_at(const uint8_t *bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Blocks of 32 numbers: byte j holds the low bits of the numbers j and j + 16.

struct Q4_0 {
  static constexpr int64_t LEN = 32, BYTES = 18;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in);
    const uint8_t *q = in + 2;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j] = static_cast<float>((q[j] & 15) - 8) * d;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j + 16] = static_cast<float>((q[j] >> 4) - 8) * d;
  }
};

struct Q4_1 {
  static constexpr int64_t LEN = 32, BYTES = 20;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in), m = half_at(in + 2);
    const uint8_t *q = in + 4;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j] = static_cast<float>(q[j] & 15) * d + m;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j + 16] = static_cast<float>(q[j] >> 4) * d + m;
  }
};

struct Q5_0 {
  static constexpr int64_t LEN = 32, BYTES = 22;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in);
    const uint32_t high = word_at(in + 2);
    const uint8_t *q = in + 6;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j] = static_cast<float>(static_cast<int>((q[j] & 15) | (((high >> j) & 1) << 4)) - 16) * d;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j + 16] = static_cast<float>(static_cast<int>((q[j] >> 4) | (((high >> (j + 16)) & 1) << 4)) - 16) * d;
  }
};

struct Q5_1 {
  static constexpr int64_t LEN = 32, BYTES = 24;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in), m = half_at(in + 2);
    const uint32_t high = word_at(in + 4);
    const uint8_t *q = in + 8;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j] = static_cast<float>(static_cast<int>((q[j] & 15) | (((high >> j) & 1) << 4))) * d + m;
#pragma omp simd
    for (int j = 0; j < 16; j++)
      out[j + 16] = static_cast<float>(static_cast<int>((q[j] >> 4) | (((high >> (j + 16)) & 1) << 4))) * d + m;
  }
};

struct Q8_0 {
  static constexpr int64_t LEN = 32, BYTES = 34;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in);
    for (int j = 0; j < 32; j++)
      out[j] = static_cast<float>(static_cast<int8_t>(in[2 + j])) * d;
  }
};

// Blocks of 256 numbers, in groups with factors of their own.

inline __attribute__((always_inline)) float signed_at(const uint8_t *byte) {
  return static_cast<float>(static_cast<int8_t>(*byte));
}

// Two groups of 16 numbers.
inline __attribute__((always_inline)) void scale_groups(const int8_t *numbers, float first, float second, float *out) {
#pragma omp simd
  for (int j = 0; j < 16; j++)
    out[j] = first * static_cast<float>(numbers[j]);
#pragma omp simd
  for (int j = 16; j < 32; j++)
    out[j] = second * static_cast<float>(numbers[j]);
}

struct Q2K {
  static constexpr int64_t LEN = 256, BYTES = 84;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in + 80), min = half_at(in + 82);
    for (int group = 0; group < 16; group++) {
      // Groups of 16: four pairs of bits of the same 32 bytes follow one another.
      const uint8_t *q = in + 16 + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * (group % 8 / 2);
      const float scale = d * static_cast<float>(in[group] & 15), offset = min * static_cast<float>(in[group] >> 4);
#pragma omp simd
      for (int j = 0; j < 16; j++)
        out[16 * group + j] = scale * static_cast<float>((q[j] >> shift) & 3) - offset;
    }
  }
};

struct Q3K {
  static constexpr int64_t LEN = 256, BYTES = 110;
  // Scales of 6 bits: the lower four of groups 0-7 and 8-15 share bytes, the upper two of four groups each.
  static inline __attribute__((always_inline)) float scale(const uint8_t *packed, int group) {
    const int low = (packed[group % 8] >> (group < 8 ? 0 : 4)) & 15;
    const int high = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
    return static_cast<float>(low | (high << 4)) - 32.0f;
  }
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const uint8_t *mask = in, *packed = in + 96;
    const float d = half_at(in + 108);
    for (int part = 0; part < 8; part++) {
      const uint8_t *q = in + 32 + 32 * (part / 4);
      const int shift = 2 * (part % 4);
      int8_t numbers[32];
#pragma omp simd
      for (int j = 0; j < 32; j++)
        numbers[j] = static_cast<int8_t>(((q[j] >> shift) & 3) + 4 * ((mask[j] >> part) & 1) - 4);
      scale_groups(numbers, d * scale(packed, 2 * part), d * scale(packed, 2 * part + 1), out + 32 * part);
    }
  }
};

// Scale and offset of one of 8 groups: factors of the block times 6 bits each in 12 bytes.
struct Group {
  float scale, offset;
  inline __attribute__((always_inline)) Group(float d, float min, const uint8_t *packed, int group) {
    const bool is_plain = group < 4;
    const int low = is_plain ? packed[group] & 63 : (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4);
    const int high = is_plain ? packed[group + 4] & 63 : (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4);
    scale = d * static_cast<float>(low);
    offset = min * static_cast<float>(high);
  }
};

struct Q4K {
  static constexpr int64_t LEN = 256, BYTES = 144;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in), min = half_at(in + 2);
    for (int pair = 0; pair < 4; pair++) {
      const uint8_t *q = in + 16 + 32 * pair;
      const Group first(d, min, in + 4, 2 * pair), second(d, min, in + 4, 2 * pair + 1);
      float *numbers = out + 64 * pair;
      for (int j = 0; j < 32; j++)
        numbers[j] = first.scale * static_cast<float>(q[j] & 15) - first.offset;
      for (int j = 0; j < 32; j++)
        numbers[j + 32] = second.scale * static_cast<float>(q[j] >> 4) - second.offset;
    }
  }
};

struct Q5K {
  static constexpr int64_t LEN = 256, BYTES = 176;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in), min = half_at(in + 2);
    const uint8_t *high = in + 16;
    for (int pair = 0; pair < 4; pair++) {
      const uint8_t *q = in + 48 + 32 * pair;
      const Group first(d, min, in + 4, 2 * pair), second(d, min, in + 4, 2 * pair + 1);
      float *numbers = out + 64 * pair;
      for (int j = 0; j < 32; j++)
        numbers[j] = first.scale * static_cast<float>((q[j] & 15) + (((high[j] >> (2 * pair)) & 1) << 4)) - first.offset;
      for (int j = 0; j < 32; j++)
        numbers[j + 32] = second.scale * static_cast<float>((q[j] >> 4) + (((high[j] >> (2 * pair + 1)) & 1) << 4)) - second.offset;
    }
  }
};

struct Q6K {
  static constexpr int64_t LEN = 256, BYTES = 210;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    const float d = half_at(in + 208);
    for (int part = 0; part < 8; part++) {
      // In each half of the block, four parts of 32 numbers share 64 bytes of low and 32 bytes of high bits.
      const int half = part / 4, quarter = part % 4;
      const uint8_t *low = in + 64 * half + 32 * (quarter % 2), *high = in + 128 + 32 * half;
      const int low_shift = quarter < 2 ? 0 : 4, high_shift = 2 * quarter;
      int8_t numbers[32];
#pragma omp simd
      for (int j = 0; j < 32; j++)
        numbers[j] = static_cast<int8_t>((((low[j] >> low_shift) & 15) | (((high[j] >> high_shift) & 3) << 4)) - 32);
      scale_groups(numbers, d * signed_at(in + 192 + 2 * part), d * signed_at(in + 193 + 2 * part), out + 32 * part);
    }
  }
};

// Levels of 4 bits, times a factor of the group.
inline __attribute__((always_inline)) void scaled_levels(const float *levels, float scale, float *scaled) {
  for (int level = 0; level < 16; level++)
    scaled[level] = levels[level] * scale;
}

struct Nf4 {
  static constexpr int64_t LEN = 64, BYTES = 36;
  static inline __attribute__((always_inline)) void widen(const float *levels, const uint8_t *in, float *out, int64_t n) {
    float scaled[16];
    scaled_levels(levels, float_at(in), scaled);
    const uint8_t *q = in + 4;
    for (int64_t j = 0; j < std::min<int64_t>(32, n); j++)
      out[j] = scaled[q[j] & 15];
    for (int64_t j = 32; j < n; j++)
      out[j] = scaled[q[j - 32] >> 4];
  }
};

// e2m1: sign, two bits of exponent, one of mantissa.
constexpr float MXFP4_LEVELS[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

struct Mxfp4 {
  static constexpr int64_t LEN = 32, BYTES = 17;
  static inline __attribute__((always_inline)) void widen(const uint8_t *in, float *out) {
    float scaled[16];
    scaled_levels(MXFP4_LEVELS, in[0] == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, in[0] - 127),
                  scaled);
    for (int j = 0; j < 16; j++) {
      out[2 * j] = scaled[in[1 + j] & 15];
      out[2 * j + 1] = scaled[in[1 + j] >> 4];
    }
  }
};

// Half the bits of an fp32 with the exponent off by 112; subnormal numbers are those of fp32.
inline __attribute__((always_inline)) float half_of(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFFu) << 13;
  // Infinities and NaN have the largest exponent in both formats.
  const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;
  float number;
  std::memcpy(&number, &magnitude, sizeof number);
  number *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  bits |= special | (static_cast<uint32_t>(half & 0x8000u) << 16);
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// e4m3 without infinities: as an fp32 with the exponent off by 120; its subnormal numbers are those of fp32.
inline __attribute__((always_inline)) float e4m3(uint8_t byte) {
  const uint32_t magnitude = byte & 127u;
  const uint32_t bits = (magnitude << 20) | (static_cast<uint32_t>(byte >> 7) << 31);
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return magnitude == 127 ? std::numeric_limits<float>::quiet_NaN() : number * 0x1p120f;
}

} // namespace
