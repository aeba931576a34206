#include "activations.h"

#include <algorithm>

#include "tiles.h"
#include "weights.h"

namespace {

void fill_rows(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  for (int64_t t = 0; t < a.tokens; t++) {
    const float *from = x + t * x_stride;
    int64_t i = 0;
    if (a.layout == PAIRS) {
      uint16_t *to = static_cast<uint16_t *>(a.data) + t * a.stride + k;
      for (; i + LANES <= count; i += LANES) store_bf16(to + i, load(from + i));
      for (; i < count; i++) to[i] = bits_bf16(from[i]);
    } else {
      float *to = static_cast<float *>(a.data) + t * a.stride + k;
      if (a.layout == FLOATS) memcpy(to, from, count * 4), i = count;
      for (; i + LANES <= count; i += LANES) store(to + i, round_bf16(load(from + i)));
      for (; i < count; i++) to[i] = round_bf16(broadcast(from[i]))[0];
    }
  }
}

bool is_tiled(Layout layout) { return layout == TILES || layout == SPLIT; }

}  // namespace

void Activations::fill(int64_t k, const float *x, int64_t x_stride, int64_t count) const {
  if (is_tiled(layout)) return fill_tiles(*this, k, x, x_stride, count);
  fill_rows(*this, k, x, x_stride, count);
}

Layout layout_for(Type weight, bool precise) {
  if (weight == FLOAT32 || weight == FLOAT16) return FLOATS;
  if (tiles_available()) return precise ? SPLIT : TILES;
#ifdef HAVE_PAIRS
  return precise ? FLOATS : PAIRS;
#else
  return precise ? FLOATS : ROUNDED;
#endif
}

Activations ActivationScratch::empty(Layout layout, int64_t tokens, int64_t in) {
  const int64_t stride = (in + BLOCK - 1) / BLOCK * BLOCK + 32;  // lest all rows meet in the same lines of a cache
  if (is_tiled(layout)) {
    const Activations a = {layout, tokens, in, stride, kept.get(tiled_bytes(layout, tokens, in) / 4)};
    return a;
  }
  const int64_t rows = (tokens + FEW - 1) / FEW * FEW, size = layout == PAIRS ? 2 : 4;
  char *data = reinterpret_cast<char *>(kept.get(rows * stride * size / 4));
  for (int64_t t = 0; t < tokens; t++) std::fill(data + (t * stride + in) * size, data + (t + 1) * stride * size, 0);
  std::fill(data + tokens * stride * size, data + rows * stride * size, 0);
  return {layout, tokens, in, stride, data};
}

Activations ActivationScratch::lay_out(const float *x, Layout layout, int64_t tokens, int64_t in) {
  const Activations a = empty(layout, tokens, in);
  const int64_t step = 256;
#pragma omp parallel for schedule(static) if (tokens > FEW)
  for (int64_t k = 0; k < in; k += step) a.fill(k, x + k, in, std::min(step, in - k));
  return a;
}

void product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (is_tiled(x.layout)) return tile_product(x, w, first, rows, y, stride);
#ifdef HAVE_PAIRS
  if (x.layout == PAIRS) return pair_product(x, w, first, rows, y, stride);
#endif
  float_product(x, w, first, rows, y, stride);
}
