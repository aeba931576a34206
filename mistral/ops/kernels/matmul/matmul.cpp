// Linear layers: W (out, in) @ x (T, in) -> y (T, out), and the feed-forward network w2 (silu(w1 x) * (w3 x)), for
// weights of every type. Weights are read where they lie. Their rows are divided among threads; a thread multiplies a
// range of rows with all tokens (of at most MAX_TOKENS at a time). All sums are float32, or exact integers.
#include <omp.h>

#include <algorithm>

#include "all_threads.h"
#include "blocks/formats.h"
#include "matmul/activations.h"
#include "operators.h"
#include "simd.h"

namespace {

struct Product {  // one of several products with the same activations
  Matrix weight;
  float *y;
  int64_t stride;  // of y, from token to token
};

int64_t row_bytes(const Matrix &w) {
  if (is_blocks(w.type))
    return with_format(w.type, [&](auto *format) {
      using F = std::remove_pointer_t<decltype(format)>;
      return w.in / F::WEIGHTS * F::BYTES;
    });
  return w.in * (w.type == FLOAT32 ? 4 : w.type == FLOAT8 ? 1 : 2);
}

// The number of rows in a range, a multiple of `multiple`: few enough that every thread has some. Where rows are
// streams, so many that waiting for the first cache lines costs little, and that the threads end at about the same
// time: of a small matrix only two ranges for each thread. With tiles as many as leave room for their sums with all
// tokens in the second-level cache, since the tokens are read from the third level once for each range.
int64_t rows_at_once(const Matrix &w, Layout layout, int64_t tokens, int64_t multiple, int64_t limit = MAX_ROWS) {
  constexpr int64_t ENOUGH = 1 << 20, SMALL = 4 << 20;  // bytes
  const bool streams = tokens == 1 || (has_lanes(layout) && tokens <= FEW_TOKENS);
  const int64_t most = streams ? ENOUGH / row_bytes(w) : is_tiled(layout) ? MAX_ROWS : MAX_ROWS / 4;
  const int64_t ranges = (tokens == 1 && w.out * row_bytes(w) < SMALL ? 2 : 4) * omp_get_max_threads();
  const int64_t rows = std::clamp<int64_t>(std::min(w.out / ranges, most) / multiple * multiple, 32, limit);
  // Rows that are read side by side are an odd number of rows apart, or they would compete for the same sets of a cache.
  // Short rows are not: 512 of them, each 32 apart, are read faster.
  if (!has_lanes(layout) || (rows == MAX_ROWS && most >= 2 * MAX_ROWS)) return rows;
  const int64_t apart = rows / LANES | 1;
  return (apart * LANES <= limit ? apart : apart - 2) * LANES;
}

// All products, in one parallel region
void multiply_all(const Activations &x, const Product *products, int n_products) {
  struct Range {
    const Product *product;
    int64_t first, rows;
  };
  static thread_local std::vector<Range> range_buffer;
  range_buffer.clear();
  for (int i = 0; i < n_products; i++) {
    const int64_t out = products[i].weight.out;
    const int64_t step = rows_at_once(products[i].weight, x.layout, x.tokens, is_tiled(x.layout) ? 32 : 16);
    for (int64_t n = 0; n < out; n += step) range_buffer.push_back({products + i, n, std::min(step, out - n)});
  }
  const Range *ranges = range_buffer.data();
  const int64_t count = range_buffer.size();
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; i++) {
    const Range &r = ranges[i];
    multiply_rows(x, r.product->weight, r.first, r.rows, r.product->y + r.first, r.product->stride);
  }
}

// a = silu(a) * b
void silu_mul(float *a, const float *b, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store(a + i, silu(load(a + i)) * load(b + i));
  for (; i < size; i++) a[i] = (silu(broadcast(a[i])) * b[i])[0];
}

// y[i] (T, out_i) of n weights, at most three
void linear_several(const float *x, const Matrix *weights, float *const *y, int n, int64_t tokens, bool precise) {
  static thread_local ActivationScratch scratch;
  const AllThreads threads;
  for (int64_t t = 0; t < tokens; t += MAX_TOKENS) {
    const int64_t count = std::min(MAX_TOKENS, tokens - t), in = weights[0].in;
    Product products[3];
    for (int i = 0, next; i < n; i = next) {  // consecutive weights that want the same layout share the activations
      const Layout layout = layout_for(weights[i].type, count, precise);
      const Activations a = scratch.pack(x + t * in, layout, count, in);
      for (next = i; next < n && layout_for(weights[next].type, count, precise) == layout; next++)
        products[next] = {weights[next], y[next] + t * weights[next].out, weights[next].out};
      multiply_all(a, products + i, next - i);
    }
  }
}

}  // namespace

void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool precise) {
  linear_several(x, &weight, &y, 1, tokens, precise);
}

void linear_three(const float *x, const Matrix *weights, float *const *y, int64_t tokens, bool precise) {
  linear_several(x, weights, y, 3, tokens, precise);
}

// A thread computes a range of hidden elements of all tokens, and packs them at once as activations of w2. For weights
// in blocks they are packed when all are there, since a block of activations needs its largest first.
void feed_forward(const float *x, FeedForwardWeights weights, float *y, int64_t tokens, bool precise) {
  static thread_local ActivationScratch scratch1, scratch3, scratch2;
  static thread_local Scratch<float> unpacked_buffer;
  const AllThreads threads;
  const Matrix w1 = weights.w1, w2 = weights.w2, w3 = weights.w3;
  for (int64_t t = 0; t < tokens; t += MAX_TOKENS) {
    const int64_t count = std::min(MAX_TOKENS, tokens - t);
    const Layout layout1 = layout_for(w1.type, count, precise), layout2 = layout_for(w2.type, count, precise);
    const Layout layout3 = layout_for(w3.type, count, precise);
    const Activations a1 = scratch1.pack(x + t * w1.in, layout1, count, w1.in);
    const Activations a3 = layout3 == layout1 ? a1 : scratch3.pack(x + t * w1.in, layout3, count, w1.in);
    const int64_t step = rows_at_once(w1, layout1, count, 32, MAX_ROWS / 2);
    float *unpacked = is_in_blocks(layout2) ? unpacked_buffer.get(count * w2.in) : nullptr;
    Activations hidden = unpacked ? Activations{} : scratch2.empty(layout2, count, w2.in);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n = 0; n < w1.out; n += step) {
      static thread_local Scratch<float> gate_buffer, up_buffer;
      const int64_t rows = std::min(step, w1.out - n), stride = unpacked ? w2.in : rows;
      float *gate = unpacked ? unpacked + n : gate_buffer.get(count * rows), *up = up_buffer.get(count * rows);
      multiply_rows(a1, w1, n, rows, gate, stride);
      multiply_rows(a3, w3, n, rows, up, rows);
      for (int64_t i = 0; i < count; i++) silu_mul(gate + i * stride, up + i * rows, rows);
      if (!unpacked) hidden.pack(n, gate, rows, rows);
    }
    if (unpacked) hidden = scratch2.pack(unpacked, layout2, count, w2.in);
    const Product product = {w2, y + t * w2.out, w2.out};
    multiply_all(hidden, &product, 1);
  }
}
