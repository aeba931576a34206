// IQ4_NL and IQ4_XS: four-bit numbers that stand for levels (mistral/ops/blocks/iq4.py).
#include "quantize/block.h"
#include "quantize/search.h"

namespace quantize {
namespace {

constexpr int RUN = 32;
constexpr float LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The level nearest to x, in 15 steps that vectorize
inline float nearest_level(float x) {
  float level = LEVELS[0];
  for (int i = 0; i < 15; i++) level = x >= (LEVELS[i] + LEVELS[i + 1]) / 2 ? LEVELS[i + 1] : level;
  return level;
}

// The scale of 32 weights, of either sign: the largest may lie at either end of the levels
float level_scale(const float *x, const float *w) {
  const float top = extreme<RUN>(x);
  if (std::fabs(top) < NOTHING) return 0;
  float inverse[STEPS];
  for (int s = 0; s < HALF; s++) {
    inverse[s] = (LEVELS[0] + s - HALF / 2) / top;
    inverse[s + HALF] = (LEVELS[15] + s - HALF / 2) / top;
  }
  return best_scale<RUN>(x, w, inverse, nearest_level);
}

// What the weights of a group count: with importances mixed with their size, else their squares, mixed with four times
// the mean square, of which `spread` is twice as much
void weigh_run(const float *x, const float *w, float spread, float *counts) {
  if (w)
    mixed_importances<RUN>(x, w, spread, counts);
  else
    for (int i = 0; i < RUN; i++) counts[i] = 2 * spread + x[i] * x[i];
}

// Indices of the levels nearest to x / scale: byte j has weight j below and weight j + 16 above
void store_levels(const float *x, float scale, uint8_t *out) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  int index[RUN];
  for (int i = 0; i < RUN; i++) {
    index[i] = 0;
    for (int n = 0; n < 15; n++) index[i] += x[i] * inverse >= (LEVELS[n] + LEVELS[n + 1]) / 2;
  }
  for (int j = 0; j < 16; j++) out[j] = uint8_t(index[j] | index[j + 16] << 4);
}

}  // namespace

void iq4_nl(const float *x, const float *w, int64_t columns, uint8_t *out) {
  for (int64_t k = 0; k < columns; k += RUN, out += 18) {
    float counts[RUN];
    weigh_run(x + k, w ? w + k : nullptr, 2 * mean_square(x + k, RUN), counts);
    store_levels(x + k, store_half(level_scale(x + k, counts), out), out + 2);
  }
}

void iq4_xs(const float *x, const float *w, int64_t columns, uint8_t *out) {
  constexpr int BLOCK = 256, GROUPS = BLOCK / RUN;
  for (int64_t k = 0; k < columns; k += BLOCK, out += 136) {
    float scales[GROUPS], counts[RUN];
    const float spread = 2 * mean_square(x + k, BLOCK);
    for (int g = 0; g < GROUPS; g++) {
      const int64_t at = k + g * RUN;
      weigh_run(x + at, w ? w + at : nullptr, spread, counts);
      scales[g] = level_scale(x + at, counts);
    }
    const float unit = store_half(extreme<GROUPS>(scales) / -32, out), inverse = unit != 0 ? 1 / unit : 0;
    uint16_t upper = 0;
    std::fill_n(out + 4, 4, uint8_t(0));
    for (int g = 0; g < GROUPS; g++) {
      const float whole = clamped(scales[g] * inverse, -32, 31);
      const int stored = int(whole) + 32;
      upper = uint16_t(upper | (stored >> 4) << 2 * g);
      out[4 + g / 2] = uint8_t(out[4 + g / 2] | (stored & 15) << g % 2 * 4);
      store_levels(x + k + g * RUN, unit * whole, out + 8 + g * 16);
    }
    memcpy(out + 2, &upper, 2);
  }
}

}  // namespace quantize
