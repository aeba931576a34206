// Weights times activations. A weight is read where it lies; activations meet bfloat16 weights, and those of fewer bits,
// as bfloat16, whatever the number of tokens, and every sum is a float.
#include <algorithm>

#include "matmul/activations.h"
#include "operators.h"
#include "matmul/matmul_amx.h"
#include "matmul/weight_rows.h"

namespace {

struct Piece {  // one product of several that share their activations
  Matrix weight;
  float *y;
  int64_t stride;
};

// Rows for one thread at a time: few enough that all threads have some. For a single token many, since each range begins
// with waiting for its first lines; in tiles as many as leave room for their sums with all tokens in the second-level
// cache, since the tokens come from the third once for all of them.
int64_t rows_at_once(int64_t out, Layout layout, int64_t tokens) {
  const int64_t most = tokens == 1 || layout == TILES || layout == SPLIT ? MOST_ROWS : MOST_ROWS / 4;
  return std::clamp<int64_t>(out / (4 * omp_get_max_threads()) / 32 * 32, 32, most);
}

void multiply(const Activations &x, const Piece *pieces, int n_pieces) {
  struct Range {
    const Piece *piece;
    int64_t first, rows;
  };
  static thread_local std::vector<Range> kept;
  kept.clear();
  for (int i = 0; i < n_pieces; i++) {
    const int64_t out = pieces[i].weight.out, step = rows_at_once(out, x.layout, x.tokens);
    for (int64_t n = 0; n < out; n += step) kept.push_back({pieces + i, n, std::min(step, out - n)});
  }
  const Range *ranges = kept.data();
  const int64_t count = kept.size();
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; i++) {
    const Range &r = ranges[i];
    product(x, r.piece->weight, r.first, r.rows, r.piece->y + r.first, r.piece->stride);
  }
}

// gates = silu(gates) * ups
void gate(float *gates, const float *ups, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store(gates + i, silu(load(gates + i)) * load(ups + i));
  for (; i < size; i++) gates[i] = (silu(broadcast(gates[i])) * ups[i])[0];
}

void linear_some(const float *x, const Matrix *weights, float *const *y, int n, int64_t tokens, bool precise) {
  static thread_local ActivationScratch kept;
  const AllThreads threads;
  for (int64_t t = 0; t < tokens; t += CHUNK) {
    const int64_t count = std::min(CHUNK, tokens - t), in = weights[0].in;
    Piece pieces[3];
    for (int i = 0, next; i < n; i = next) {  // neighbours that want the same layout share it
      const Layout layout = layout_for(weights[i].type, count, precise);
      const Activations a = kept.lay_out(x + t * in, layout, count, in);
      for (next = i; next < n && layout_for(weights[next].type, count, precise) == layout; next++)
        pieces[next] = {weights[next], y[next] + t * weights[next].out, weights[next].out};
      multiply(a, pieces + i, next - i);
    }
  }
}

}  // namespace

void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool precise) {
  linear_some(x, &weight, &y, 1, tokens, precise);
}

void linear_three(const float *x, const Matrix *weights, float *const *y, int64_t tokens, bool precise) {
  linear_some(x, weights, y, 3, tokens, precise);
}

void feed_forward(const float *x, Expert weights, float *y, int64_t tokens, bool precise) {
  static thread_local ActivationScratch kept, kept_again, kept_hidden;
  static thread_local Scratch<float> kept_wide;
  const AllThreads threads;
  const Matrix w1 = weights.w1, w2 = weights.w2, w3 = weights.w3;
  for (int64_t t = 0; t < tokens; t += CHUNK) {
    const int64_t count = std::min(CHUNK, tokens - t);
    const Layout first = layout_for(w1.type, count, precise), second = layout_for(w2.type, count, precise);
    const Layout third = layout_for(w3.type, count, precise);
    const Activations a = kept.lay_out(x + t * w1.in, first, count, w1.in);
    const Activations b = third == first ? a : kept_again.lay_out(x + t * w1.in, third, count, w1.in);
    const int64_t step = std::min(rows_at_once(w1.out, first, count), MOST_ROWS / 2);
    // integers need the largest of a part before any other
    float *wide = second == INTEGERS ? kept_wide.get(count * w2.in) : nullptr;
    Activations hidden = wide ? Activations{} : kept_hidden.empty(second, count, w2.in);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n = 0; n < w1.out; n += step) {
      static thread_local Scratch<float> gates, ups;
      const int64_t rows = std::min(step, w1.out - n), stride = wide ? w2.in : rows;
      float *g = wide ? wide + n : gates.get(count * rows), *u = ups.get(count * rows);
      product(a, w1, n, rows, g, stride);
      product(b, w3, n, rows, u, rows);
      for (int64_t i = 0; i < count; i++) gate(g + i * stride, u + i * rows, rows);
      if (!wide) hidden.fill(n, g, rows, rows);
    }
    if (wide) hidden = kept_hidden.lay_out(wide, second, count, w2.in);
    const Piece piece = {w2, y + t * w2.out, w2.out};
    multiply(hidden, &piece, 1);
  }
}

const char *instructions() {
  if (tiles_available()) return "AMX";
  if (pairs_pay()) return "AVX-512 BF16";
  return LANES == 16 ? "AVX-512" : LANES == 8 ? "AVX2" : "plain";
}
