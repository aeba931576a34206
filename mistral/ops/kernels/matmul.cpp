// Weights times activations. A weight is read where it lies; activations meet bfloat16 weights as bfloat16, whatever
// the number of tokens, and every sum is a float.
#include <algorithm>

#include "kernels.h"
#include "parts.h"
#include "tiles.h"
#include "vector.h"

namespace {

constexpr int64_t DEPTH = 512, PANEL = 64;  // a panel of 64 rows, 512 deep, stays in the second-level cache

// y[m][n] (+)= x[m] . w[n] over `depth` elements for R tokens and C weight rows
template <int R, int C, class W>
inline void dots(const float *x, int64_t x_stride, const W *w, int64_t w_stride, int64_t depth, float *y,
                 int64_t y_stride, bool accumulate) {
  Floats sums[R][C] = {};
  int64_t k = 0;
  for (; k + LANES <= depth; k += LANES) {
    Floats weights[C];
    for (int c = 0; c < C; c++) weights[c] = load(w + c * w_stride + k);
    for (int r = 0; r < R; r++) {
      const Floats activation = load(x + r * x_stride + k);
      for (int c = 0; c < C; c++) sums[r][c] += activation * weights[c];
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      float total = sum(sums[r][c]);
      for (int64_t i = k; i < depth; i++) total += x[r * x_stride + i] * one(w + c * w_stride + i);
      float *to = y + r * y_stride + c;
      *to = accumulate ? *to + total : total;
    }
}

template <int R, class W>
inline void dots_of_rows(const float *x, int64_t x_stride, const W *w, int64_t w_stride, int64_t depth, float *y,
                         int64_t y_stride, int64_t rows, bool accumulate) {
  int64_t n = 0;
  for (; n + 4 <= rows; n += 4)
    dots<R, 4>(x, x_stride, w + n * w_stride, w_stride, depth, y + n, y_stride, accumulate);
  for (; n < rows; n++) dots<R, 1>(x, x_stride, w + n * w_stride, w_stride, depth, y + n, y_stride, accumulate);
}

template <class W>
void multiply(const float *x, const W *w, float *y, int64_t tokens, int64_t in, int64_t out) {
  const int64_t depth = tokens <= 4 ? in : DEPTH;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < out; n += PANEL) {
    const int64_t rows = std::min(PANEL, out - n);
    for (int64_t k = 0; k < in; k += depth) {
      const int64_t deep = std::min(depth, in - k);
      const W *panel = w + n * in + k;
      int64_t t = 0;
      for (; t + 4 <= tokens; t += 4)
        dots_of_rows<4>(x + t * in + k, in, panel, in, deep, y + t * out + n, out, rows, k > 0);
      for (; t < tokens; t++)
        dots_of_rows<1>(x + t * in + k, in, panel, in, deep, y + t * out + n, out, rows, k > 0);
    }
  }
}

void round_all(const float *x, float *y, int64_t size) {
  const int64_t whole = size / LANES * LANES;
#pragma omp parallel for schedule(static) if (size > 65536)
  for (int64_t i = 0; i < whole; i += LANES) store(y + i, round_bf16(load(x + i)));
  for (int64_t i = whole; i < size; i++) y[i] = round_bf16(broadcast(x[i]))[0];
}

void gate(float *g, const float *u, int64_t size) {
  const int64_t whole = size / LANES * LANES;
#pragma omp parallel for schedule(static) if (size > 65536)
  for (int64_t i = 0; i < whole; i += LANES) store(g + i, silu(load(g + i)) * load(u + i));
  for (int64_t i = whole; i < size; i++) g[i] = (silu(broadcast(g[i])) * u[i])[0];
}

bool in_tiles(Matrix weight, int64_t tokens) { return weight.type == BFLOAT16 && tokens > 1 && tiles_available(); }

}  // namespace

void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool exact) {
  const AllThreads threads;
  const int64_t in = weight.in, out = weight.out;
  if (!exact && in_tiles(weight, tokens)) return tiled_linear(x, weight, y, tokens);
  if (weight.type == FLOAT32) return multiply(x, static_cast<const float *>(weight.data), y, tokens, in, out);
  if (weight.type == FLOAT16) return multiply(x, static_cast<const F16 *>(weight.data), y, tokens, in, out);
  const Bf16 *data = static_cast<const Bf16 *>(weight.data);
  if (exact) return multiply(x, data, y, tokens, in, out);
  static thread_local Scratch<float> kept;
  float *rounded = kept.get(tokens * in);
  round_all(x, rounded, tokens * in);
  multiply(rounded, data, y, tokens, in, out);
}

void feed_forward(const float *x, Matrix w1, Matrix w2, Matrix w3, float *y, int64_t tokens) {
  const AllThreads threads;
  if (in_tiles(w1, tokens) && w2.type == BFLOAT16 && w3.type == BFLOAT16)
    return tiled_feed_forward(x, w1, w2, w3, y, tokens);
  static thread_local Scratch<float> gates, ups;
  constexpr int64_t CHUNK = 512;  // tokens at a time, so that the hidden activations of a long prompt stay small
  for (int64_t t = 0; t < tokens; t += CHUNK) {
    const int64_t count = std::min(CHUNK, tokens - t);
    float *g = gates.get(count * w1.out), *u = ups.get(count * w1.out);
    linear(x + t * w1.in, w1, g, count);
    linear(x + t * w1.in, w3, u, count);
    gate(g, u, count * w1.out);
    linear(g, w2, y + t * w2.out, count);
  }
}

const char *instructions() {
  if (tiles_available()) return "AMX";
  return LANES == 16 ? "AVX-512" : LANES == 8 ? "AVX2" : "plain";
}
