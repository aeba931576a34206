// Sparse mixture of experts (arXiv:2401.04088): a token's router weights are a softmax over its largest scores. Only the
// experts that some token chose are read, each once, and no token is dropped.
#include <algorithm>
#include <numeric>
#include <vector>

#include "operators.h"
#include "simd.h"

namespace {

struct Choice {
  int64_t token;
  float weight;
};

// The experts of each token: by_expert[e] has the tokens that chose e
void route(const float *scores, int64_t tokens, int64_t experts, int64_t chosen,
           std::vector<std::vector<Choice>> &by_expert) {
  std::vector<int64_t> order(experts);
  std::vector<float> weights(chosen);
  by_expert.assign(experts, {});
  for (int64_t t = 0; t < tokens; t++) {
    const float *own = scores + t * experts;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return own[a] > own[b]; });
    float total = 0;
    for (int64_t i = 0; i < chosen; i++)
      total += weights[i] = exponential(broadcast(own[order[i]] - own[order[0]]))[0];
    for (int64_t i = 0; i < chosen; i++) by_expert[order[i]].push_back({t, weights[i] / total});
  }
}

}  // namespace

void mixture(const float *x, Matrix gate, const Expert *experts, int64_t chosen, float *y, int64_t tokens,
             bool precise) {
  static thread_local Scratch<float> kept_scores, kept_rows, kept_served;
  static thread_local std::vector<std::vector<Choice>> by_expert;
  const int64_t dim = gate.in;
  float *scores = kept_scores.get(tokens * gate.out);
  linear(x, gate, scores, tokens, true);  // never rounded, lest a token change experts
  route(scores, tokens, gate.out, chosen, by_expert);
  std::fill_n(y, tokens * dim, 0.f);
  for (int64_t e = 0; e < gate.out; e++) {
    const std::vector<Choice> &choices = by_expert[e];
    const int64_t count = choices.size();
    if (!count) continue;
    float *rows = kept_rows.get(count * dim), *served = kept_served.get(count * dim);
    for (int64_t i = 0; i < count; i++) std::copy_n(x + choices[i].token * dim, dim, rows + i * dim);
    feed_forward(rows, experts[e], served, count, precise);
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < dim; j++) y[choices[i].token * dim + j] += choices[i].weight * served[i * dim + j];
  }
}
