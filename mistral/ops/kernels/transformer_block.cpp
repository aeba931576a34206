// Pre-norm transformer blocks, all in one call. A block has two halves: y = x + f(norm(x)), x and y (T, D), where f is
// attention with its four projections, then the feed-forward network or a mixture of experts. And the library's entry.
#include "all_threads.h"
#include "operators.h"
#include "processor.h"
#include "scratch.h"

namespace {

// y += x
void add_residual(const float *x, float *y, int64_t size) {
#pragma omp parallel for schedule(static) if (size > 65536)
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

// Attention with its four projections
void attention_half(const float *x, const AttentionWeights &weights, Rotation rotation, float *y, Heads heads,
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

// The feed-forward network, or the mixture of experts
void feed_forward_half(const float *x, const TransformerBlock &block, float *y, int64_t tokens, bool precise) {
  static thread_local Scratch<float> normed_buffer;
  const AllThreads threads;
  const int64_t dim = block.norm.weight.in;
  float *normed = normed_buffer.get(tokens * dim);
  rms_norm(x, block.norm, normed, tokens);
  if (block.gate.data)
    mixture(normed, block.gate, block.experts, block.chosen, y, tokens, precise);
  else
    feed_forward(normed, block.experts[0], y, tokens, precise);
  add_residual(x, y, tokens * dim);
}

void transformer_blocks(const float *x, const TransformerBlock *const *blocks, int64_t n_blocks, Rotation rotation,
                        float *y, Heads heads, const Sequence *sequences, int64_t n_sequences, bool precise) {
  static thread_local Scratch<float> attended_buffer, between_buffer;
  const AllThreads threads;
  int64_t tokens = 0;
  for (int64_t s = 0; s < n_sequences; s++) tokens += sequences[s].tokens;
  const int64_t size = tokens * blocks[0]->norm.weight.in;
  float *attended = attended_buffer.get(size), *between = between_buffer.get(size);
  for (int64_t i = 0; i < n_blocks; i++) {
    heads.window = blocks[i]->window;
    float *to = i == n_blocks - 1 ? y : between;
    const Sequence *own = sequences + i * n_sequences;
    attention_half(x, blocks[i]->attention, rotation, attended, heads, own, n_sequences, precise);
    feed_forward_half(attended, *blocks[i], to, tokens, precise);
    x = to;
  }
}

}  // namespace

extern "C" const Kernels *mistral_kernels() {
  static const Kernels kernels = {embed,   rms_norm,           linear,            attention,     feed_forward,
                                  mixture, transformer_blocks, feed_forward_half, instructions()};
  return &kernels;
}
