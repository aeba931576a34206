// Quantization of W (out, in) to 8 or 4 bits, in the formats that mistral/ops/quantized.py defines: values, a scale for
// each group of 32 weights along a row, and an exponent for each row.
#include <cmath>

#include "all_threads.h"
#include "matmul/weight_rows.h"
#include "scratch.h"

namespace {

// The least power of two that a row is scaled by; smaller weights lose bits, and far smaller ones become 0
constexpr int SMALLEST = -110;

// A row of any dense type -> float32, filled up with zeros to `width`; NaN and infinity become 0. Returns their number.
template <class WeightRow>
int64_t widen(const WeightRow &row, int64_t in, int64_t width, float *to) {
  int64_t not_finite = 0;
  std::fill_n(to, width, 0.f);
  for (int64_t k = 0; k < in; k += LANES) store(to + k, row.floats_padded(k));
  for (int64_t k = 0; k < in; k++)
    if (!std::isfinite(to[k])) to[k] = 0, not_finite++;
  return not_finite;
}

// The largest magnitude; count is a multiple of LANES
float largest_of(const float *x, int64_t count) {
  Floats lanes{};
  for (int64_t k = 0; k < count; k += LANES) lanes = maximum(maximum(load(x + k), -load(x + k)), lanes);
  float largest = 0;
  for (int i = 0; i < LANES; i++) largest = std::max(largest, float(lanes[i]));
  return largest;
}

// The stored exponent of a row with this largest weight. weight * inverse is in units of the row: at most 2048.
uint8_t exponent_of(float largest, float &inverse) {
  const int power = largest > 0 ? std::min(127, std::max(std::ilogb(largest) + 1, SMALLEST)) : SMALLEST;
  inverse = std::ldexp(1.f, 11 - power);
  return uint8_t(power + 127);
}

// x (width,) -> int8 values with a shift of 0 to 4 bits for each group
void quantize_row8(float *x, int64_t width, int8_t *values, uint8_t *scales, uint8_t &exponent) {
  float inverse;
  exponent = exponent_of(largest_of(x, width), inverse);
  for (int64_t k = 0; k < width; k += GROUP) {
    const float largest = largest_of(x + k, GROUP) * inverse;
    const int shift = largest >= 128 ? std::min(std::ilogb(largest) - 6, 4) : 0;
    const float group_inverse = std::ldexp(inverse, -shift);
    for (int64_t i = 0; i < GROUP; i++)
      values[k + i] = int8_t(std::min(127.f, std::max(-127.f, std::nearbyint(x[k + i] * group_inverse))));
    scales[k / GROUP] = uint8_t(shift);
  }
}

// Indices of the nearest of 16 ascending levels to x * inverse, by the 15 points midway between them
Words nearest(Floats x, float inverse, const float *middles) {
  const Floats scaled = x * inverse;
  Ints below{};
  for (int i = 0; i < 15; i++) below -= scaled > middles[i];
  return (Words)below;
}

// A group of weights in units of its row -> 32 nibbles; returns the scale. Of the nine sizes around the largest weight,
// with either sign, the one with the least sum of squared errors is taken.
uint8_t quantize_group4(const float *x, uint32_t *nibbles) {
  static const struct Middles {
    float at[15];
    Middles() {
      for (int i = 0; i < 15; i++) at[i] = (codebook.floats[127][i] + codebook.floats[127][i + 1]) / 2;
    }
  } middles;
  const float largest = largest_of(x, GROUP) / 2048;
  const int centre = largest > 0 ? 127 + int(std::ceil(8 * std::log2(largest))) : 0;
  float least = INFINITY;
  int best = 0;
  for (int size = std::max(0, centre - 4); size <= std::min(127, std::max(0, centre + 4)); size++)
    for (int scale : {size, size + 128}) {
      const float inverse = std::exp2((127 - size) / 8.f) * (scale < 128 ? 1 : -1);
      Floats error{};
      Words found[GROUP / LANES];
      for (int64_t i = 0; i < GROUP / LANES; i++) {
        const Floats weights = load(x + i * LANES);
        found[i] = nearest(weights, inverse, middles.at);
        const Floats difference = look_up(codebook.floats[scale], found[i]) - weights;
        error += difference * difference;
      }
      const float total = sum(error);
      if (total >= least) continue;
      least = total, best = scale;
      memcpy(nibbles, found, sizeof found);
    }
  return uint8_t(best);
}

// x (width,) -> words of four nibbles; x is brought to units of the row
void quantize_row4(float *x, int64_t width, uint16_t *words, uint8_t *scales, uint8_t &exponent) {
  float inverse;
  exponent = exponent_of(largest_of(x, width), inverse);
  std::fill_n(words, width / 4, 0);
  for (int64_t k = 0; k < width; k += GROUP) {
    uint32_t nibbles[GROUP];
    for (int64_t i = 0; i < GROUP; i += LANES) store(x + k + i, load(x + k + i) * inverse);
    scales[k / GROUP] = quantize_group4(x + k, nibbles);
    uint16_t *to = words + k / BLOCK * 32;
    for (int64_t i = 0; i < GROUP; i++) to[i] = uint16_t(to[i] | nibbles[i] << (k / GROUP % 4 * 4));
  }
}

template <class WeightRow>
int64_t quantize_all(Matrix w, int32_t bits, uint8_t *values, uint8_t *scales, uint8_t *exponents) {
  const int64_t unit = bits == 8 ? GROUP : BLOCK, width = (w.in + unit - 1) / unit * unit, groups = width / GROUP;
  int64_t not_finite = 0;
#pragma omp parallel for schedule(dynamic, 16) reduction(+ : not_finite)
  for (int64_t n = 0; n < w.out; n++) {
    static thread_local Scratch<float> row_buffer;
    float *x = row_buffer.get(width);
    not_finite += widen(WeightRow(w, n), w.in, width, x);
    if (bits == 8)
      quantize_row8(x, width, reinterpret_cast<int8_t *>(values) + n * width, scales + n * groups, exponents[n]);
    else
      quantize_row4(x, width, reinterpret_cast<uint16_t *>(values + n * width / 2), scales + n * groups, exponents[n]);
  }
  return not_finite;
}

}  // namespace

// rows (out, in) of float32, bfloat16 or float16 -> the parts of a quantized matrix (the Quantized of
// mistral/ops/quantized.py). NaN and infinity are taken as 0; returns their number.
extern "C" int64_t quantize_rows(const void *rows, int32_t type, int64_t out, int64_t in, int32_t bits, uint8_t *values,
                                 uint8_t *scales, uint8_t *exponents) {
  const AllThreads threads;
  const Matrix w = {rows, nullptr, nullptr, Type(type), out, in};
  if (type == FLOAT32) return quantize_all<DenseWeightRow<float>>(w, bits, values, scales, exponents);
  if (type == FLOAT16) return quantize_all<DenseWeightRow<F16>>(w, bits, values, scales, exponents);
  return quantize_all<DenseWeightRow<Bf16>>(w, bits, values, scales, exponents);
}
