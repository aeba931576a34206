// The search for the scale of a group of weights, with which the sum of w (x - scale * number)^2 is least.
//
// Numbers are whole and kept as floats. A search tries STEPS scales around the one that just holds the largest weight;
// for the numbers that come of each it takes the scale of least squares. The scales lie side by side in vector
// registers, and sums go from weight to weight, so that they are the same whatever the width of a vector.
#pragma once
#include <algorithm>
#include <cmath>

#include "quantize/block.h"

namespace quantize {

constexpr int STEPS = 32, HALF = STEPS / 2;
constexpr float STRIDE = 0.06f;         // between scales, in numbers at the end of their range
constexpr float NOTHING = 1e-15f;       // groups whose largest weight is smaller are all zeros
constexpr float ROUNDING = 12582912.f;  // 1.5 * 2^23: float32 has no fractions there

// The nearest whole number from low to high, which are whole and smaller than 2^22; ties to even
inline float clamped(float x, float low, float high) {
  const float bounded = x < low ? low : x > high ? high : x;
  return (bounded + ROUNDING) - ROUNDING;
}

// The weight of the largest magnitude, with its sign
template <int N>
float extreme(const float *x) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < N; i++) largest = std::max(largest, std::fabs(x[i]));
  for (int i = 0; i < N; i++)
    if (std::fabs(x[i]) == largest) return x[i];
  return 0;
}

// The scale of least squares among those that 1 / inverse (STEPS,) stands for: scale * q is nearest to x, where
// q = rounded(x * inverse) are its numbers
template <int N, class Rounded>
float best_scale(const float *x, const float *w, const float *inverse, const Rounded &rounded) {
  float xq[STEPS] = {}, qq[STEPS] = {};
  for (int half = 0; half < STEPS; half += HALF)
    for (int i = 0; i < N; i++) {
      const float value = x[i], count = w[i];
#pragma omp simd
      for (int s = half; s < half + HALF; s++) {
        const float q = rounded(value * inverse[s]);
        xq[s] += count * value * q;
        qq[s] += count * q * q;
      }
    }
  float scale = 0, gain = 0;  // what the error is smaller by than with all numbers zero
  for (int s = 0; s < STEPS; s++)
    if (qq[s] > 0 && xq[s] * xq[s] > gain * qq[s]) scale = xq[s] / qq[s], gain = scale * xq[s];
  return scale;
}

// The scale for numbers from -most to most - 1
template <int N>
float symmetric_scale(const float *x, const float *w, int most) {
  const float top = extreme<N>(x), low = float(-most), high = float(most - 1);
  if (std::fabs(top) < NOTHING) return 0;
  float inverse[STEPS];
  for (int s = 0; s < STEPS; s++) inverse[s] = -(most + STRIDE * (s - HALF)) / top;
  return best_scale<N>(x, w, inverse, [=](float value) { return clamped(value, low, high); });
}

// Numbers of a scale: x / scale, or zeros where it is 0
template <int N>
void symmetric_numbers(const float *x, float scale, float low, float high, float *q) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < N; i++) q[i] = clamped(x[i] * inverse, low, high);
}

// x = scale * number + minimum
struct Affine {
  float scale, minimum;
};

// Of STEPS scales, the one and its minimum of least squares, with which y (N,), from 0 up, is nearest to
// scale * q + minimum; q is y * inverse, from 0 to most. No minimum is above `limit`.
template <int N>
Affine best_affine(const float *y, const float *w, float most, const float *inverse, float limit) {
  float sum_q[STEPS] = {}, sum_qq[STEPS] = {}, sum_yq[STEPS] = {}, sum_w = 0, sum_y = 0;
  for (int half = 0; half < STEPS; half += HALF)
    for (int i = 0; i < N; i++) {
      const float value = y[i], count = w[i];
#pragma omp simd
      for (int s = half; s < half + HALF; s++) {
        const float q = clamped(value * inverse[s], 0, most), wq = count * q;
        sum_q[s] += wq;
        sum_qq[s] += wq * q;
        sum_yq[s] += wq * value;
      }
    }
  for (int i = 0; i < N; i++) sum_w += w[i], sum_y += w[i] * y[i];
  float scale[STEPS], minimum[STEPS], gain[STEPS];  // gain: what the error is smaller by than without numbers
#pragma omp simd
  for (int s = 0; s < STEPS; s++) {
    const float determinant = sum_w * sum_qq[s] - sum_q[s] * sum_q[s];
    const float free = (sum_qq[s] * sum_y - sum_q[s] * sum_yq[s]) / determinant;
    minimum[s] = free > limit ? limit : free;
    scale[s] = (sum_yq[s] - minimum[s] * sum_q[s]) / sum_qq[s];
    gain[s] = scale[s] * (2 * sum_yq[s] - scale[s] * sum_qq[s] - 2 * minimum[s] * sum_q[s]) +
              minimum[s] * (2 * sum_y - minimum[s] * sum_w);
    gain[s] = determinant > 0 && scale[s] > 0 ? gain[s] : 0;
  }
  const int best = int(std::max_element(gain, gain + STEPS) - gain);
  return gain[best] > 0 ? Affine{scale[best], minimum[best]} : Affine{1 / inverse[HALF], 0};
}

// The scale and minimum for numbers from 0 to most; no_positive: the minimum is at most 0
template <int N>
Affine affine_scale(const float *x, const float *w, int most, bool no_positive) {
  float low = x[0], high = x[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int i = 0; i < N; i++) low = std::min(low, x[i]), high = std::max(high, x[i]);
  if (no_positive) low = std::min(low, 0.f);
  if (high - low < NOTHING) return {0, low};
  float y[N], inverse[STEPS];
  for (int i = 0; i < N; i++) y[i] = x[i] - low;
  for (int s = 0; s < STEPS; s++) inverse[s] = (most + STRIDE * (s - HALF)) / (high - low);
  const Affine found = best_affine<N>(y, w, float(most), inverse, no_positive ? -low : INFINITY);
  return {found.scale, found.minimum + low};
}

// N numbers x that are not negative as whole numbers from 0 to most of a unit; w: what each counts. The unit is written
// as a float16 and returned.
template <int N>
float unit_of(const float *x, const float *w, int most, uint8_t *numbers, uint8_t *out) {
  const float top = extreme<N>(x), high = float(most);
  float inverse[STEPS], unit = 0;
  if (top >= NOTHING) {
    for (int s = 0; s < STEPS; s++) inverse[s] = (most + STRIDE * (s - HALF)) / top;
    unit = best_scale<N>(x, w, inverse, [=](float value) { return clamped(value, 0, high); });
  }
  unit = store_half(unit, out);
  for (int i = 0; i < N; i++) numbers[i] = unit > 0 ? uint8_t(clamped(x[i] / unit, 0, high)) : uint8_t(0);
  return unit;
}

// What each weight of a group counts in formats of few bits: its importance times a size in which that of its
// neighbours is mixed; `spread`: the mean square of these.
template <int N>
void mixed_importances(const float *x, const float *importances, float spread, float *w) {
#pragma omp simd
  for (int i = 0; i < N; i++) w[i] = importances[i] * std::sqrt(spread + x[i] * x[i]);
}

// The mean of the squares of count weights
inline float mean_square(const float *x, int64_t count) {
  float sums[HALF] = {}, sum = 0;
  for (int64_t i = 0; i < count; i += HALF)
#pragma omp simd
    for (int s = 0; s < HALF; s++) sums[s] += x[i + s] * x[i + s];
  for (int s = 0; s < HALF; s++) sum += sums[s];
  return sum / float(count);
}

}  // namespace quantize
