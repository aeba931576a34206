// Packing of activations x (T, in) into each layout, and the choice of layout and microkernel for a weight's type.
#include "matmul/activations.h"

#include <algorithm>
#include <cmath>

#include "blocks/activations.h"
#include "blocks/formats.h"
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

}  // namespace

void Activations::pack(int64_t k, const float *x, int64_t x_stride, int64_t count) const {
  if (is_tiled(layout)) return pack_tiles(*this, k, x, x_stride, count);
  if (is_in_blocks(layout)) return pack_blocks(*this, k, x, x_stride, count);
  if (layout == PAIR_ROWS) return pack_pairs(*this, k, x, x_stride, count);
  if (layout == ODD_EVEN_ROWS) return pack_odd_even(*this, k, x, x_stride, count);
  pack_floats(*this, k, x, x_stride, count);
}

Layout layout_for(Type weight, [[maybe_unused]] int64_t tokens, bool precise) {
  if (weight == FLOAT32 || weight == FLOAT16) return FLOAT_ROWS;
  if (is_blocks(weight)) return precise ? FLOAT_ROWS : blocks_layout(weight, tokens);
  if (amx_available()) return precise ? HIGH_LOW_TILES : TILES;
  if (precise) return FLOAT_ROWS;
#ifdef HAVE_BF16
  if (tokens <= MEMORY_BOUND_TOKENS || bf16_pairs_pay()) return PAIR_ROWS;
#endif
  return ODD_EVEN_ROWS;
}

Activations ActivationScratch::empty(Layout layout, int64_t tokens, int64_t in) {
  if (is_in_blocks(layout)) return empty_blocks(buffer, layout, tokens, in);
  if (is_tiled(layout)) return {layout, tokens, in, in, buffer.get(tiled_bytes(layout, tokens, in) / 4)};
  const int64_t rows = tokens == 1 ? 1 : tokens + FEW_TOKENS;  // microkernels read whole groups of tokens
  const int64_t size = layout == PAIR_ROWS ? 2 : 4, filled = (in + 127) / 128 * 128;
  // Rows that are apart by whole pages compete for the same sets of a cache. So they are a line or two further apart;
  // few rows of bfloat16 half a page as well: all stay in the first-level cache while weights stream through it.
  constexpr int64_t PAGE = 4096, HALF = PAGE / 2 + 64;
  const bool few = layout == PAIR_ROWS && tokens <= 4 * FEW_TOKENS;
  const int64_t stride = few ? ((filled * size - HALF + PAGE - 1) / PAGE * PAGE + HALF) / size : filled + 32;
  char *data = reinterpret_cast<char *>(buffer.get(rows * stride * size / 4));
  for (int64_t t = 0; t < tokens; t++) std::fill_n(data + (t * stride + in) * size, (filled - in) * size, 0);
  for (int64_t t = tokens; t < rows; t++) std::fill_n(data + t * stride * size, filled * size, 0);
  return {layout, tokens, in, stride, data};
}

Activations ActivationScratch::pack(const float *x, Layout layout, int64_t tokens, int64_t in) {
  const Activations a = empty(layout, tokens, in);
#pragma omp parallel for schedule(static) if (tokens > FEW_TOKENS || (is_in_blocks(layout) && tokens * in > 16384))
  for (int64_t k = 0; k < in; k += 256) a.pack(k, x + k, in, std::min<int64_t>(256, in - k));
  return a;
}

void multiply_rows(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (is_tiled(x.layout)) return multiply_rows_amx(x, w, first, rows, y, stride);
#ifdef HAVE_BF16
  if (x.layout == PAIR_ROWS) return multiply_rows_pairs(x, w, first, rows, y, stride);
#endif
  if (is_in_blocks(x.layout)) return multiply_rows_blocks(x, w, first, rows, y, stride);
  if (x.layout == ODD_EVEN_ROWS) return multiply_rows_odd_even(x, w, first, rows, y, stride);
  multiply_rows_float(x, w, first, rows, y, stride);
}
