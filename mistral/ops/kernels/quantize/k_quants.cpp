// Q4_K, Q5_K and Q6_K: blocks of 256 weights whose groups have scales of their own (mistral/ops/blocks/k_quants.py).
#include "quantize/block.h"
#include "quantize/search.h"

namespace quantize {
namespace {

constexpr int BLOCK = 256, GROUP = 32, GROUPS = BLOCK / GROUP;

// Eight scales and eight minima of six bits each -> twelve bytes
void store_scales(const uint8_t *scales, const uint8_t *minima, uint8_t *out) {
  for (int g = 0; g < 4; g++) {
    out[g] = uint8_t(scales[g] | scales[g + 4] >> 4 << 6);
    out[g + 4] = uint8_t(minima[g] | minima[g + 4] >> 4 << 6);
    out[g + 8] = uint8_t((scales[g + 4] & 15) | (minima[g + 4] & 15) << 4);
  }
}

// Scales, minima and numbers of one block; out: its first 16 bytes
void affine_block(const float *x, const float *w, int most, float *q, uint8_t *out) {
  float scales[GROUPS], minima[GROUPS], total[GROUPS];
  const float spread = 2 * mean_square(x, BLOCK);
  for (int g = 0; g < GROUPS; g++) {
    const float *group = x + g * GROUP;
    float counts[GROUP];
    if (w) {
      mixed_importances<GROUP>(group, w + g * GROUP, spread, counts);
    } else {
      const float size = std::sqrt(mean_square(group, GROUP));
      for (int i = 0; i < GROUP; i++) counts[i] = size + std::fabs(group[i]);
    }
    const Affine found = affine_scale<GROUP>(group, counts, most, true);
    scales[g] = found.scale, minima[g] = -found.minimum, total[g] = 0;
    for (int i = 0; i < GROUP; i++) total[g] += counts[i];
  }
  uint8_t whole_scales[GROUPS], whole_minima[GROUPS];
  const float unit = unit_of<GROUPS>(scales, total, 63, whole_scales, out);
  const float minimum_unit = unit_of<GROUPS>(minima, total, 63, whole_minima, out + 2);
  store_scales(whole_scales, whole_minima, out + 4);
  for (int g = 0; g < GROUPS; g++) {
    const float scale = unit * whole_scales[g], minimum = minimum_unit * whole_minima[g];
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int i = g * GROUP; i < (g + 1) * GROUP; i++) q[i] = clamped((x[i] + minimum) * inverse, 0, float(most));
  }
}

// The lower four bits of 256 numbers: 32 bytes have one group below and the next above
void store_group_nibbles(const float *q, uint8_t *out) {
  for (int pair = 0; pair < GROUPS / 2; pair++)
    for (int j = 0; j < GROUP; j++) {
      const float *at = q + pair * 2 * GROUP + j;
      out[pair * GROUP + j] = uint8_t((int(at[0]) & 15) | (int(at[GROUP]) & 15) << 4);
    }
}

}  // namespace

void q4_k(const float *x, const float *w, int64_t columns, uint8_t *out) {
  for (int64_t k = 0; k < columns; k += BLOCK, out += 144) {
    float q[BLOCK];
    affine_block(x + k, w ? w + k : nullptr, 15, q, out);
    store_group_nibbles(q, out + 16);
  }
}

void q5_k(const float *x, const float *w, int64_t columns, uint8_t *out) {
  for (int64_t k = 0; k < columns; k += BLOCK, out += 176) {
    float q[BLOCK];
    affine_block(x + k, w ? w + k : nullptr, 31, q, out);
    for (int j = 0; j < GROUP; j++) {
      uint8_t fifth = 0;
      for (int g = 0; g < GROUPS; g++) fifth = uint8_t(fifth | (int(q[g * GROUP + j]) >> 4) << g);
      out[16 + j] = fifth;
    }
    store_group_nibbles(q, out + 48);
  }
}

void q6_k(const float *x, const float *w, int64_t columns, uint8_t *out) {
  constexpr int SMALL = 16, COUNT = BLOCK / SMALL;
  for (int64_t k = 0; k < columns; k += BLOCK, out += 210) {
    const float *block = x + k;
    float scales[COUNT], q[BLOCK];
    for (int g = 0; g < COUNT; g++) {
      float squares[SMALL];
      for (int i = 0; i < SMALL; i++) squares[i] = block[g * SMALL + i] * block[g * SMALL + i];
      scales[g] = symmetric_scale<SMALL>(block + g * SMALL, w ? w + k + g * SMALL : squares, 32);
    }
    const float top = extreme<COUNT>(scales);
    const float unit = store_half(std::fabs(top) < NOTHING ? 0 : top / -128, out + 208);
    const float inverse = unit != 0 ? 1 / unit : 0;
    for (int g = 0; g < COUNT; g++) {
      const float whole = clamped(scales[g] * inverse, -128, 127);
      out[192 + g] = uint8_t(int8_t(whole));
      symmetric_numbers<SMALL>(block + g * SMALL, unit * whole, -32, 31, q + g * SMALL);
    }
    for (int half = 0; half < 2; half++)
      for (int j = 0; j < 32; j++) {
        const float *at = q + half * 128 + j;
        int number[4];
        for (int n = 0; n < 4; n++) number[n] = int(at[32 * n]) + 32;
        uint8_t *low = out + half * 64 + j;
        low[0] = uint8_t((number[0] & 15) | (number[2] & 15) << 4);
        low[32] = uint8_t((number[1] & 15) | (number[3] & 15) << 4);
        out[128 + half * 32 + j] =
            uint8_t(number[0] >> 4 | number[1] >> 4 << 2 | number[2] >> 4 << 4 | number[3] >> 4 << 6);
      }
  }
}

}  // namespace quantize
