// Weights -> 8 or 4 bits, in the formats that mistral/quantized.py defines.
#include <cmath>

#include "operators.h"
#include "matmul/weight_rows.h"

namespace {

constexpr int SMALLEST = -110;  // exponent of two of the largest weight of a row, below which all count as zero

// Finite values of a row of any dense type, filled up with zeros to `width`; how many were not finite
template <class Row>
int64_t widen(const Row &row, int64_t in, int64_t width, float *to) {
  int64_t lost = 0;
  std::fill_n(to, width, 0.f);
  for (int64_t k = 0; k < in; k += LANES) store(to + k, row.part(k));
  for (int64_t k = 0; k < in; k++)
    if (!std::isfinite(to[k])) to[k] = 0, lost++;
  return lost;
}

float largest_of(const float *x, int64_t count) {
  Floats most{};
  for (int64_t k = 0; k < count; k += LANES) most = larger(larger(load(x + k), -load(x + k)), most);
  float found = 0;
  for (int i = 0; i < LANES; i++) found = std::max(found, float(most[i]));
  return found;
}

// The exponent of a row whose largest weight is `most`, and what brings its weights to whole numbers of at most 2048
uint8_t exponent_of(float most, float &by) {
  const int power = most > 0 ? std::min(127, std::max(std::ilogb(most) + 1, SMALLEST)) : SMALLEST;
  by = std::ldexp(1.f, 11 - power);
  return uint8_t(power + 127);
}

void quantize_row8(float *x, int64_t width, int8_t *values, uint8_t *scales, uint8_t &exponent) {
  float by;
  exponent = exponent_of(largest_of(x, width), by);
  for (int64_t k = 0; k < width; k += GROUP) {
    const float most = largest_of(x + k, GROUP) * by;
    const int shift = most >= 128 ? std::min(std::ilogb(most) - 6, 4) : 0;
    const float own = std::ldexp(by, -shift);
    for (int64_t i = 0; i < GROUP; i++)
      values[k + i] = int8_t(std::min(127.f, std::max(-127.f, std::nearbyint(x[k + i] * own))));
    scales[k / GROUP] = uint8_t(shift);
  }
}

// The nearest of the 16 levels to each of x / size
Words nearest(Floats x, float inverse, const float *middles) {
  const Floats scaled = x * inverse;
  Ints below{};
  for (int i = 0; i < 15; i++) below -= scaled > middles[i];
  return (Words)below;
}

// One group, already in its row's unit -> its scale and 32 nibbles: what loses the least squared error
uint8_t quantize_group4(const float *x, uint32_t *nibbles) {
  static const struct Middles {
    float at[15];
    Middles() {
      for (int i = 0; i < 15; i++) at[i] = (levels.floats[127][i] + levels.floats[127][i + 1]) / 2;
    }
  } middles;
  const float most = largest_of(x, GROUP) / 2048;
  const int centre = most > 0 ? 127 + int(std::ceil(8 * std::log2(most))) : 0;
  float least = INFINITY;
  int best = 0;
  for (int size = std::max(0, centre - 4); size <= std::min(127, std::max(0, centre + 4)); size++)
    for (int code : {size, size + 128}) {
      const float inverse = std::exp2((127 - size) / 8.f) * (code < 128 ? 1 : -1);
      Floats error{};
      Words found[GROUP / LANES];
      for (int64_t i = 0; i < GROUP / LANES; i++) {
        const Floats own = load(x + i * LANES);
        found[i] = nearest(own, inverse, middles.at);
        const Floats off = look_up(levels.floats[code], found[i]) - own;
        error += off * off;
      }
      const float total = sum(error);
      if (total >= least) continue;
      least = total, best = code;
      memcpy(nibbles, found, sizeof found);
    }
  return uint8_t(best);
}

void quantize_row4(float *x, int64_t width, uint16_t *words, uint8_t *scales, uint8_t &exponent) {
  float by;
  exponent = exponent_of(largest_of(x, width), by);
  std::fill_n(words, width / 4, 0);
  for (int64_t k = 0; k < width; k += GROUP) {
    uint32_t nibbles[GROUP];
    for (int64_t i = 0; i < GROUP; i += LANES) store(x + k + i, load(x + k + i) * by);
    scales[k / GROUP] = quantize_group4(x + k, nibbles);
    uint16_t *to = words + k / BLOCK * 32;
    for (int64_t i = 0; i < GROUP; i++) to[i] = uint16_t(to[i] | nibbles[i] << (k / GROUP % 4 * 4));
  }
}

template <class Row>
int64_t quantize_all(Matrix w, int32_t bits, uint8_t *values, uint8_t *scales, uint8_t *exponents) {
  const int64_t unit = bits == 8 ? GROUP : BLOCK, width = (w.in + unit - 1) / unit * unit, groups = width / GROUP;
  int64_t lost = 0;
#pragma omp parallel for schedule(dynamic, 16) reduction(+ : lost)
  for (int64_t n = 0; n < w.out; n++) {
    static thread_local Scratch<float> kept;
    float *x = kept.get(width);
    lost += widen(Row(w, n), w.in, width, x);
    if (bits == 8)
      quantize_row8(x, width, reinterpret_cast<int8_t *>(values) + n * width, scales + n * groups, exponents[n]);
    else
      quantize_row4(x, width, reinterpret_cast<uint16_t *>(values + n * width / 2), scales + n * groups, exponents[n]);
  }
  return lost;
}

}  // namespace

// rows (out, in) of float32, bfloat16 or float16 -> the parts of a quantized matrix; returns how many values were not
// finite, which count as zero.
extern "C" int64_t quantize_rows(const void *rows, int32_t type, int64_t out, int64_t in, int32_t bits, uint8_t *values,
                                 uint8_t *scales, uint8_t *exponents) {
  const AllThreads threads;
  const Matrix w = {rows, nullptr, nullptr, Type(type), out, in};
  if (type == FLOAT32) return quantize_all<DenseRow<float>>(w, bits, values, scales, exponents);
  if (type == FLOAT16) return quantize_all<DenseRow<F16>>(w, bits, values, scales, exponents);
  return quantize_all<DenseRow<Bf16>>(w, bits, values, scales, exponents);
}
