#include "matmul/activations.h"

#include <algorithm>
#include <cmath>

#include "matmul/matmul_amx.h"
#include "matmul/weight_rows.h"

namespace {

void fill_floats(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  for (int64_t t = 0; t < a.tokens; t++)
    memcpy(static_cast<float *>(a.data) + t * a.stride + k, x + t * x_stride, count * sizeof(float));
}

void fill_pairs(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  for (int64_t t = 0; t < a.tokens; t++) {
    const float *from = x + t * x_stride;
    uint16_t *to = static_cast<uint16_t *>(a.data) + t * a.stride + k;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store_bf16(to + i, load(from + i));
    for (; i < count; i++) to[i] = bits_bf16(from[i]);
  }
}

void fill_halves(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
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

// One part of a row -> integers; their scale
float fill_integers(const float *from, int16_t *to, int64_t count) {
  Floats most{};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = larger(larger(load(from + i), -load(from + i)), most);
  float largest = 0;
  for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, float(most[lane]));
  for (; i < count; i++) largest = std::max(largest, std::abs(from[i]));
  const float scale = largest > 0 ? largest / LARGEST : 1, by = largest > 1e-30f ? LARGEST / largest : 0;
  const auto rounded = [by](Floats x) { return __builtin_convertvector((x * by + ROUNDER) - ROUNDER, Ints); };
  typedef int16_t Shortened __attribute__((vector_size(LANES * 2)));
  for (i = 0; i + LANES <= count; i += LANES) {
    const Shortened shorts = __builtin_convertvector(rounded(load(from + i)), Shortened);
    memcpy(to + i, &shorts, sizeof shorts);
  }
  for (; i < count; i++) to[i] = int16_t(rounded(broadcast(from[i]))[0]);
  return scale;
}

bool is_tiled(Layout layout) { return layout == TILES || layout == SPLIT; }

}  // namespace

void Activations::fill(int64_t k, const float *x, int64_t x_stride, int64_t count) const {
  if (is_tiled(layout)) return fill_tiles(*this, k, x, x_stride, count);
  if (layout == INTEGERS) {
    for (int64_t t = 0; t < tokens; t++)
      scales[t * scale_step + k / INTEGER_PART] =
          fill_integers(x + t * x_stride, static_cast<int16_t *>(data) + t * stride + k, count);
    return;
  }
  if (layout == PAIRS) return fill_pairs(*this, k, x, x_stride, count);
  if (layout == HALVED) return fill_halves(*this, k, x, x_stride, count);
  fill_floats(*this, k, x, x_stride, count);
}

// vdpbf16ps takes four times as long as a product of floats on Intel's processors, and as long as one on AMD's.
bool pairs_pay() {
#ifdef HAVE_PAIRS
  static const bool pay = __builtin_cpu_is("amd");
  return pay;
#endif
  return false;
}

Layout layout_for(Type weight, int64_t tokens, bool precise) {
  if (weight == FLOAT32 || weight == FLOAT16) return FLOATS;
  if (tiles_available()) return precise ? SPLIT : TILES;
  if (precise) return FLOATS;
#ifdef HAVE_INTEGERS
  if (weight == BITS8 || weight == BITS4) return INTEGERS;
#endif
#ifdef HAVE_PAIRS
  if (weight == BFLOAT16 && (tokens <= FEWEST || pairs_pay())) return PAIRS;
#endif
  return weight == BFLOAT16 ? HALVED : FLOATS;
}

Activations ActivationScratch::empty(Layout layout, int64_t tokens, int64_t in) {
  static float one = 1;
  const int64_t stride = (in + BLOCK - 1) / BLOCK * BLOCK + 32;  // lest all rows meet in the same lines of a cache
  if (is_tiled(layout))
    return {layout, tokens, in, stride, kept.get(tiled_bytes(layout, tokens, in) / 4), &one, 0};
  const int64_t rows = tokens + FEW, size = layout == PAIRS || layout == INTEGERS ? 2 : 4;
  const int64_t parts = layout == INTEGERS ? (in + INTEGER_PART - 1) / INTEGER_PART : 0;
  float *all = kept.get(rows * stride * size / 4 + rows * parts);
  char *data = reinterpret_cast<char *>(all);
  for (int64_t t = 0; t < tokens; t++) std::fill(data + (t * stride + in) * size, data + (t + 1) * stride * size, 0);
  std::fill(data + tokens * stride * size, data + rows * stride * size, 0);
  return {layout, tokens, in, stride, data, parts ? all + rows * stride * size / 4 : &one, parts};
}

Activations ActivationScratch::lay_out(const float *x, Layout layout, int64_t tokens, int64_t in) {
  const Activations a = empty(layout, tokens, in);
  const int64_t step = layout == INTEGERS ? INTEGER_PART : 256;
#pragma omp parallel for schedule(static) if (tokens > FEW)
  for (int64_t k = 0; k < in; k += step) a.fill(k, x + k, in, std::min(step, in - k));
  return a;
}

void product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (is_tiled(x.layout)) return tile_product(x, w, first, rows, y, stride);
#ifdef HAVE_PAIRS
  if (x.layout == PAIRS) return pair_product(x, w, first, rows, y, stride);
#endif
#ifdef HAVE_INTEGERS
  if (x.layout == INTEGERS) return integer_product(x, w, first, rows, y, stride);
#endif
  if (x.layout == HALVED) return split_product(x, w, first, rows, y, stride);
  float_product(x, w, first, rows, y, stride);
}
