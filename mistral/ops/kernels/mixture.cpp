// Sparse mixture of experts (Mixtral, arXiv:2401.04088): x (T, D) -> y (T, D). A token's weights are the softmax over
// its `chosen` largest router scores gate (E, D) @ x; y is the sum of its experts' outputs with these weights. Only
// experts that some token chose are read, each once for all its tokens, and no token is dropped.
#include <algorithm>
#include <numeric>
#include <vector>

#include "all_threads.h"
#include "operators.h"
#include "scratch.h"
#include "simd.h"

namespace {

struct Assignment {  // of a token to an expert
  int64_t token;
  float weight;
};
using Assignments = std::vector<std::vector<Assignment>>;  // those of each expert

// scores (T, E) -> by_expert; of equal scores the expert with the lower index comes first
void route(const float *scores, int64_t tokens, int64_t experts, int64_t chosen, Assignments &by_expert) {
  std::vector<int64_t> order(experts);
  std::vector<float> weights(chosen);
  by_expert.assign(experts, {});
  for (int64_t t = 0; t < tokens; t++) {
    const float *own = scores + t * experts;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return own[a] > own[b]; });
    float total = 0;
    for (int64_t i = 0; i < chosen; i++) total += weights[i] = exponential(broadcast(own[order[i]] - own[order[0]]))[0];
    for (int64_t i = 0; i < chosen; i++) by_expert[order[i]].push_back({t, weights[i] / total});
  }
}

}  // namespace

void mixture(const float *x, Matrix gate, const FeedForwardWeights *experts, int64_t chosen, float *y, int64_t tokens,
             bool precise) {
  static thread_local Scratch<float> score_buffer, input_buffer, output_buffer;
  static thread_local Assignments by_expert;
  const AllThreads threads;
  const int64_t dim = gate.in;
  float *scores = score_buffer.get(tokens * gate.out);
  linear(x, gate, scores, tokens, true);  // precise: rounding could change a token's experts
  route(scores, tokens, gate.out, chosen, by_expert);
  std::fill_n(y, tokens * dim, 0.f);
  for (int64_t e = 0; e < gate.out; e++) {
    const std::vector<Assignment> &assigned = by_expert[e];
    const int64_t count = assigned.size();
    if (!count) continue;
    float *inputs = input_buffer.get(count * dim), *outputs = output_buffer.get(count * dim);
    for (int64_t i = 0; i < count; i++) std::copy_n(x + assigned[i].token * dim, dim, inputs + i * dim);
    feed_forward(inputs, experts[e], outputs, count, precise);
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < dim; j++) y[assigned[i].token * dim + j] += assigned[i].weight * outputs[i * dim + j];
  }
}
