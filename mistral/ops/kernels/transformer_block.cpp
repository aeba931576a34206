// The two halves of a pre-norm transformer block, each in one call: y = x + f(norm(x)), x and y (T, D), where f is
// attention with its four projections, the feed-forward network, or a mixture of experts. And the library's entry.
#include "all_threads.h"
#include "operators.h"
#include "processor.h"
#include "scratch.h"

namespace {

// y += x
void add_residual(const float *x, float *y, int64_t size) {
  const AllThreads threads;
#pragma omp parallel for schedule(static) if (size > 65536)
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

void attention_block(const float *x, const AttentionWeights &weights, Rotation rotation, float *y, Heads heads,
                     const Sequence *sequences, int64_t n_sequences, bool precise) {
  static thread_local Scratch<float> normed_buffer, q_buffer, k_buffer, v_buffer, out_buffer;
  int64_t tokens = 0;
  for (int64_t s = 0; s < n_sequences; s++) tokens += sequences[s].tokens;
  const int64_t dim = weights.wq.in, q_dim = weights.wq.out, kv_dim = weights.wk.out;  // D, H * d, KV * d
  float *normed = normed_buffer.get(tokens * dim), *out = out_buffer.get(tokens * q_dim);
  float *q = q_buffer.get(tokens * q_dim), *k = k_buffer.get(tokens * kv_dim), *v = v_buffer.get(tokens * kv_dim);
  const Matrix projections[] = {weights.wq, weights.wk, weights.wv};
  float *const results[] = {q, k, v};
  rms_norm(x, weights.norm, normed, tokens);
  linear_three(normed, projections, results, tokens, precise);
  attention(q, k, v, rotation, out, heads, sequences, n_sequences, precise);
  linear(out, weights.wo, y, tokens, precise);
  add_residual(x, y, tokens * dim);
}

void feed_forward_block(const float *x, Norm norm, FeedForwardWeights weights, float *y, int64_t tokens, bool precise) {
  static thread_local Scratch<float> normed_buffer;
  const int64_t dim = weights.w1.in;
  float *normed = normed_buffer.get(tokens * dim);
  rms_norm(x, norm, normed, tokens);
  feed_forward(normed, weights, y, tokens, precise);
  add_residual(x, y, tokens * dim);
}

void mixture_block(const float *x, Norm norm, Matrix gate, const FeedForwardWeights *experts, int64_t chosen, float *y,
                   int64_t tokens, bool precise) {
  static thread_local Scratch<float> normed_buffer;
  float *normed = normed_buffer.get(tokens * gate.in);
  rms_norm(x, norm, normed, tokens);
  mixture(normed, gate, experts, chosen, y, tokens, precise);
  add_residual(x, y, tokens * gate.in);
}

}  // namespace

extern "C" const Kernels *mistral_kernels() {
  static const Kernels kernels = {embed,         rms_norm,      linear,          attention,
                                  feed_forward,  mixture,       attention_block, feed_forward_block,
                                  mixture_block, instructions()};
  return &kernels;
}
