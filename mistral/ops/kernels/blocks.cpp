// The two halves of a transformer block, from the activations that come in to those that go out.
#include "operators.h"
#include "simd.h"

namespace {

void attention_block(const float *x, const AttentionWeights &weights, const float *cos, const float *sin, float *y,
                     Heads heads, const Row *rows, int64_t n_rows, bool precise) {
  static thread_local Scratch<float> kept_normed, kept_q, kept_k, kept_v, kept_out;
  int64_t tokens = 0;
  for (int64_t r = 0; r < n_rows; r++) tokens += rows[r].tokens;
  const int64_t dim = weights.wq.in, queries = weights.wq.out, keys = weights.wk.out;
  float *normed = kept_normed.get(tokens * dim), *out = kept_out.get(tokens * queries);
  float *q = kept_q.get(tokens * queries), *k = kept_k.get(tokens * keys), *v = kept_v.get(tokens * keys);
  const Matrix three[] = {weights.wq, weights.wk, weights.wv};
  float *const results[] = {q, k, v};
  rms_norm(x, weights.norm, normed, tokens);
  linear_three(normed, three, results, tokens, precise);
  attention(q, k, v, cos, sin, out, heads, rows, n_rows, precise);
  linear(out, weights.wo, y, tokens, precise);
  add(x, y, tokens * dim);
}

void feed_forward_block(const float *x, Norm norm, Expert weights, float *y, int64_t tokens, bool precise) {
  static thread_local Scratch<float> kept;
  const int64_t dim = weights.w1.in;
  float *normed = kept.get(tokens * dim);
  rms_norm(x, norm, normed, tokens);
  feed_forward(normed, weights, y, tokens, precise);
  add(x, y, tokens * dim);
}

void mixture_block(const float *x, Norm norm, Matrix gate, const Expert *experts, int64_t chosen, float *y,
                   int64_t tokens, bool precise) {
  static thread_local Scratch<float> kept;
  float *normed = kept.get(tokens * gate.in);
  rms_norm(x, norm, normed, tokens);
  mixture(normed, gate, experts, chosen, y, tokens, precise);
  add(x, y, tokens * gate.in);
}

}  // namespace

extern "C" const Kernels *mistral_kernels() {
  static const Kernels kernels = {embed,           rms_norm,           linear,        attention,     feed_forward, mixture,
                                  attention_block, feed_forward_block, mixture_block, instructions()};
  return &kernels;
}
