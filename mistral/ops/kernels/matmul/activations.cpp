// Packing of activations x (T, in) into each layout, and the choice of layout and microkernel for a weight's type.
#include "matmul/activations.h"

#include <algorithm>
#include <cmath>

#include "matmul/matmul_amx.h"
#include "matmul/weight_rows.h"
#include "processor.h"

namespace {

void pack_floats(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  for (int64_t t = 0; t < a.tokens; t++)
    memcpy(static_cast<float *>(a.data) + t * a.stride + k, x + t * x_stride, count * sizeof(float));
}

void pack_pairs(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  for (int64_t t = 0; t < a.tokens; t++) {
    const float *from = x + t * x_stride;
    uint16_t *to = static_cast<uint16_t *>(a.data) + t * a.stride + k;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store_bf16(to + i, load(from + i));
    for (; i < count; i++) to[i] = bits_bf16(from[i]);
  }
}

void pack_odd_even(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  Ints odd;
  for (int i = 0; i < LANES; i++) odd[i] = 2 * i + 1;
  for (int64_t t = 0; t < a.tokens; t++)
    for (int64_t i = 0; i < count; i += 2 * LANES) {
      const float *from = x + t * x_stride + i;
      float padded[2 * LANES] = {}, *to = static_cast<float *>(a.data) + t * a.stride + k + i;
      if (count - i < 2 * LANES) from = static_cast<float *>(memcpy(padded, from, (count - i) * sizeof(float)));
      const Floats first = round_bf16(load(from)), second = round_bf16(load(from + LANES));
      store(to, __builtin_shuffle(first, second, odd));
      store(to + LANES, __builtin_shuffle(first, second, odd - 1));
    }
}

// A block of a row -> integers of 14 bits; returns the scale that makes numbers of them
float pack_int16(const float *from, int16_t *to, int64_t count) {
  Floats largest_lanes{};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    largest_lanes = maximum(maximum(load(from + i), -load(from + i)), largest_lanes);
  float largest = 0;
  for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, float(largest_lanes[lane]));
  for (; i < count; i++) largest = std::max(largest, std::abs(from[i]));
  const float scale = largest > 0 ? largest / INT14_MAX : 1, by = largest > 1e-30f ? INT14_MAX / largest : 0;
  const auto rounded = [by](Floats x) { return __builtin_convertvector((x * by + ROUNDER) - ROUNDER, Ints); };
  typedef int16_t Shortened __attribute__((vector_size(LANES * 2)));
  for (i = 0; i + LANES <= count; i += LANES) {
    const Shortened shorts = __builtin_convertvector(rounded(load(from + i)), Shortened);
    memcpy(to + i, &shorts, sizeof shorts);
  }
  for (; i < count; i++) to[i] = int16_t(rounded(broadcast(from[i]))[0]);
  return scale;
}

bool is_tiled(Layout layout) { return layout == TILES || layout == HIGH_LOW_TILES; }

}  // namespace

void Activations::pack(int64_t k, const float *x, int64_t x_stride, int64_t count) const {
  if (is_tiled(layout)) return pack_tiles(*this, k, x, x_stride, count);
  if (layout == INT16_ROWS) {
    for (int64_t t = 0; t < tokens; t++)
      scales[t * scale_step + k / INT16_K_BLOCK] =
          pack_int16(x + t * x_stride, static_cast<int16_t *>(data) + t * stride + k, count);
    return;
  }
  if (layout == PAIR_ROWS) return pack_pairs(*this, k, x, x_stride, count);
  if (layout == ODD_EVEN_ROWS) return pack_odd_even(*this, k, x, x_stride, count);
  pack_floats(*this, k, x, x_stride, count);
}

Layout layout_for(Type weight, int64_t tokens, bool precise) {
  if (weight == FLOAT32 || weight == FLOAT16) return FLOAT_ROWS;
  if (amx_available()) return precise ? HIGH_LOW_TILES : TILES;
  if (precise) return FLOAT_ROWS;
#ifdef HAVE_INT16
  if (weight == BITS8 || weight == BITS4) return INT16_ROWS;
#endif
#ifdef HAVE_BF16
  if ((weight == BFLOAT16 || weight == FLOAT8) && (tokens <= MEMORY_BOUND_TOKENS || bf16_pairs_pay())) return PAIR_ROWS;
#endif
  return weight == BFLOAT16 || weight == FLOAT8 ? ODD_EVEN_ROWS : FLOAT_ROWS;
}

Activations ActivationScratch::empty(Layout layout, int64_t tokens, int64_t in) {
  static float one = 1;
  // 32 more than a multiple of BLOCK, so that the rows do not compete for the same sets of a cache
  const int64_t stride = (in + BLOCK - 1) / BLOCK * BLOCK + 32;
  if (is_tiled(layout)) return {layout, tokens, in, stride, buffer.get(tiled_bytes(layout, tokens, in) / 4), &one, 0};
  const int64_t rows = tokens + FEW_TOKENS;  // microkernels read whole groups of tokens
  const int64_t size = layout == PAIR_ROWS || layout == INT16_ROWS ? 2 : 4;
  const int64_t blocks = layout == INT16_ROWS ? (in + INT16_K_BLOCK - 1) / INT16_K_BLOCK : 0;
  float *all = buffer.get(rows * stride * size / 4 + rows * blocks);
  char *data = reinterpret_cast<char *>(all);
  for (int64_t t = 0; t < tokens; t++) std::fill(data + (t * stride + in) * size, data + (t + 1) * stride * size, 0);
  std::fill(data + tokens * stride * size, data + rows * stride * size, 0);
  return {layout, tokens, in, stride, data, blocks ? all + rows * stride * size / 4 : &one, blocks};
}

Activations ActivationScratch::pack(const float *x, Layout layout, int64_t tokens, int64_t in) {
  const Activations a = empty(layout, tokens, in);
  const int64_t step = layout == INT16_ROWS ? INT16_K_BLOCK : 256;
#pragma omp parallel for schedule(static) if (tokens > FEW_TOKENS)
  for (int64_t k = 0; k < in; k += step) a.pack(k, x + k, in, std::min(step, in - k));
  return a;
}

void multiply_rows(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (is_tiled(x.layout)) return multiply_rows_amx(x, w, first, rows, y, stride);
#ifdef HAVE_BF16
  if (x.layout == PAIR_ROWS) return multiply_rows_pairs(x, w, first, rows, y, stride);
#endif
#ifdef HAVE_INT16
  if (x.layout == INT16_ROWS) return multiply_rows_int16(x, w, first, rows, y, stride);
#endif
  if (x.layout == ODD_EVEN_ROWS) return multiply_rows_odd_even(x, w, first, rows, y, stride);
  multiply_rows_float(x, w, first, rows, y, stride);
}
