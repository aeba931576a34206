// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 weights with one scale each (mistral/ops/blocks/legacy.py).
#include "quantize/block.h"
#include "quantize/search.h"

namespace quantize {
namespace {

constexpr int SIZE = 32;

// What the weights of a block count: with importances mixed with their size, else their squares mixed with `spread`, the
// mean square of the row
void weigh(const float *x, const float *w, float spread, float *counts) {
  if (w)
    mixed_importances<SIZE>(x, w, spread, counts);
  else
    for (int i = 0; i < SIZE; i++) counts[i] = spread + x[i] * x[i];
}

// The lower four bits of 32 numbers: byte j has number j below and number j + 16 above
void store_nibbles(const float *q, uint8_t *out) {
  for (int j = 0; j < 16; j++) out[j] = uint8_t((int(q[j]) & 15) | (int(q[j + 16]) & 15) << 4);
}

// The fifth bits of 32 numbers
void store_fifth_bits(const float *q, uint8_t *out) {
  uint32_t bits = 0;
  for (int j = 0; j < SIZE; j++) bits |= uint32_t(int(q[j]) >> 4 & 1) << j;
  memcpy(out, &bits, 4);
}

// Numbers of `bits` bits with half of them below zero
template <int bits>
void symmetric_row(const float *x, const float *w, int64_t columns, uint8_t *out) {
  constexpr int most = 1 << (bits - 1), nbytes = bits == 4 ? 18 : 22;
  const float spread = mean_square(x, columns);
  for (int64_t k = 0; k < columns; k += SIZE, out += nbytes) {
    float counts[SIZE], q[SIZE];
    weigh(x + k, w ? w + k : nullptr, spread, counts);
    const float scale = store_half(symmetric_scale<SIZE>(x + k, counts, most), out);
    symmetric_numbers<SIZE>(x + k, scale, -most, most - 1, q);
    for (int i = 0; i < SIZE; i++) q[i] += most;
    if (bits == 5) store_fifth_bits(q, out + 2);
    store_nibbles(q, out + nbytes - 16);
  }
}

// Numbers of `bits` bits above a minimum
template <int bits>
void affine_row(const float *x, const float *w, int64_t columns, uint8_t *out) {
  constexpr int most = (1 << bits) - 1, nbytes = bits == 4 ? 20 : 24;
  const float spread = mean_square(x, columns);
  for (int64_t k = 0; k < columns; k += SIZE, out += nbytes) {
    float counts[SIZE], q[SIZE];
    weigh(x + k, w ? w + k : nullptr, spread, counts);
    const Affine found = affine_scale<SIZE>(x + k, counts, most, false);
    const float scale = store_half(found.scale, out), minimum = store_half(found.minimum, out + 2);
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < SIZE; i++) q[i] = clamped((x[k + i] - minimum) * inverse, 0, most);
    if (bits == 5) store_fifth_bits(q, out + 4);
    store_nibbles(q, out + nbytes - 16);
  }
}

}  // namespace

// Importances would change nothing that can be measured
void q8_0(const float *x, const float *, int64_t columns, uint8_t *out) {
  for (int64_t k = 0; k < columns; k += SIZE, out += 34) {
    float q[SIZE];
    const float scale = store_half(std::fabs(extreme<SIZE>(x + k)) / 127, out);
    symmetric_numbers<SIZE>(x + k, scale, -127, 127, q);
    for (int i = 0; i < SIZE; i++) out[2 + i] = uint8_t(int8_t(q[i]));
  }
}

void q4_0(const float *x, const float *w, int64_t columns, uint8_t *out) { symmetric_row<4>(x, w, columns, out); }
void q5_0(const float *x, const float *w, int64_t columns, uint8_t *out) { symmetric_row<5>(x, w, columns, out); }
void q4_1(const float *x, const float *w, int64_t columns, uint8_t *out) { affine_row<4>(x, w, columns, out); }
void q5_1(const float *x, const float *w, int64_t columns, uint8_t *out) { affine_row<5>(x, w, columns, out); }

}  // namespace quantize
