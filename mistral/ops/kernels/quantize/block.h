// What all quantizers of block formats share: float16 scales, and the functions that fill blocks.
//
// A quantizer makes the blocks of one row: x (columns,) float32, all finite; w (columns,) importances, or null where all
// weights count alike; out: the row's blocks. The formats are those of GGUF files (mistral/ops/blocks/), and a block is
// a function of its own weights alone, so that nothing depends on the number of threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace quantize {

using Quantizer = void (*)(const float *x, const float *w, int64_t columns, uint8_t *out);

// float32 -> float16, to nearest, ties to even; too large becomes infinity
inline uint16_t half_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 0x47800000) return uint16_t(sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (size < 0x38800000) {  // a subnormal: units of 2^-24
    float scaled;
    memcpy(&scaled, &size, 4);
    return uint16_t(sign | uint32_t(std::nearbyint(scaled * 16777216.f)));
  }
  return uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

// float16 -> float32
inline float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, size = half & 0x7fff;
  if (size < 0x400) {
    const float value = float(size) / 16777216.f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (size >= 0x7c00 ? 0x7f800000 | (size & 0x3ff) << 13 : (size << 13) + 0x38000000);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Writes a scale and returns what a reader sees
inline float store_half(float value, uint8_t *out) {
  const uint16_t half = half_bits(value);
  memcpy(out, &half, 2);
  return half_value(half);
}

// legacy.cpp: blocks of 32
void q8_0(const float *x, const float *w, int64_t columns, uint8_t *out);
void q4_0(const float *x, const float *w, int64_t columns, uint8_t *out);
void q4_1(const float *x, const float *w, int64_t columns, uint8_t *out);
void q5_0(const float *x, const float *w, int64_t columns, uint8_t *out);
void q5_1(const float *x, const float *w, int64_t columns, uint8_t *out);
// k_quants.cpp: blocks of 256
void q4_k(const float *x, const float *w, int64_t columns, uint8_t *out);
void q5_k(const float *x, const float *w, int64_t columns, uint8_t *out);
void q6_k(const float *x, const float *w, int64_t columns, uint8_t *out);
// iq4.cpp: blocks of 32 and 256
void iq4_nl(const float *x, const float *w, int64_t columns, uint8_t *out);
void iq4_xs(const float *x, const float *w, int64_t columns, uint8_t *out);

}  // namespace quantize
