#include "stream.h"

#include <algorithm>
#include <cmath>

#include "weights.h"

namespace {

constexpr int64_t KEYS = 64;  // keys at once
constexpr int QUERIES = 4;    // queries that share what is read of them

// Scores (n, KEYS) of n queries with keys [from, to) of a block
template <int N, class Element>
void score(const float *queries, int64_t dim, const Element *const *keys, int64_t from, int64_t to, float scale,
           float scores[QUERIES][KEYS]) {
  for (int n = 0; n < N; n++) std::fill_n(scores[n], KEYS, HIDDEN);
  for (int64_t j = from; j < to; j++) {
    const Element *key = keys[j];
    Floats sums[N] = {};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) {
      const Floats part = load(key + i);
      for (int n = 0; n < N; n++) sums[n] += part * load(queries + n * dim + i);
    }
    for (int n = 0; n < N; n++) {
      float total = sum(sums[n]);
      for (int64_t rest = i; rest < dim; rest++) total += queries[n * dim + rest] * one(key + rest);
      scores[n][j] = total * scale;
    }
  }
}

// out (n, d) += weights (n, KEYS) times values
template <int N, class Element>
void gather(const float weights[QUERIES][KEYS], const Element *const *values, int64_t from, int64_t to, int64_t dim,
            float *out) {
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    Floats sums[N];
    for (int n = 0; n < N; n++) sums[n] = load(out + n * dim + i);
    for (int64_t j = from; j < to; j++) {
      const Floats value = load(values[j] + i);
      for (int n = 0; n < N; n++) sums[n] += value * weights[n][j];
    }
    for (int n = 0; n < N; n++) store(out + n * dim + i, sums[n]);
  }
  for (; i < dim; i++)
    for (int n = 0; n < N; n++)
      for (int64_t j = from; j < to; j++) out[n * dim + i] += weights[n][j] * one(values[j] + i);
}

// N queries of one token or of neighbouring ones, at these positions
template <int N, class Element>
void stream_few(const float *queries, float *out, const int64_t *positions, Heads heads, const Past<Element> &past) {
  const int64_t dim = heads.head_dim, from = std::max<int64_t>(0, positions[0] - heads.window + 1);
  const int64_t to = positions[N - 1] + 1;
  const float scale = LOG2_E / std::sqrt(float(dim));
  alignas(64) float scores[QUERIES][KEYS];
  const Element *keys[KEYS], *values[KEYS];
  Running running[N];
  for (int64_t base = from / KEYS * KEYS; base < to; base += KEYS) {
    past.find(base, KEYS, from, to, nullptr, keys, values);
    const int64_t first = std::max(from, base) - base, last = std::min(to, base + KEYS) - base;
    score<N>(queries, dim, keys, first, last, scale, scores);
    for (int n = 0; n < N; n++) {
      hide(scores[n], base, KEYS, positions[n], heads.window);
      soften<Element>(scores[n], KEYS, running[n], out + n * dim, dim);
    }
    gather<N>(scores, values, first, last, dim, out);
  }
  for (int n = 0; n < N; n++)
    for (int64_t i = 0; i < dim; i++) out[n * dim + i] /= running[n].total;
}

}  // namespace

int64_t tokens_at_once(Heads heads, bool precise) {
  int64_t queries = 64;
#ifdef HAVE_PAIRS
  queries = precise ? 64 : tiles_available() ? 512 : 256;
#endif
  return std::max<int64_t>(1, queries * heads.kv_heads / heads.heads);
}

template <class Element>
void stream(const Element *from, float *out, Heads heads, int64_t position, int64_t count,
            const Past<Element> &past) {
  static thread_local Scratch<float> kept, kept_out;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
#ifdef HAVE_PAIRS
  if constexpr (sizeof(Element) == 2)
    if (dim % 32 == 0) {
      if (tiles_available()) return stream_tiled(from, out, heads, position, count, past);
      return stream_paired(from, out, heads, position, count, past);
    }
#endif
  float *wide = kept.get(QUERIES * dim), *found = kept_out.get(QUERIES * dim);
  for (int64_t first = 0; first < queries.count; first += QUERIES) {
    const int64_t n = std::min<int64_t>(QUERIES, queries.count - first);
    int64_t positions[QUERIES];
    std::fill_n(found, n * dim, 0.f);
    for (int64_t i = 0; i < n; i++) {
      positions[i] = position + (first + i) / group;
      for (int64_t j = 0; j < dim; j++) wide[i * dim + j] = one(from + queries.place(first + i) + j);
    }
    if (n == 4) stream_few<4>(wide, found, positions, heads, past);
    if (n == 3) stream_few<3>(wide, found, positions, heads, past);
    if (n == 2) stream_few<2>(wide, found, positions, heads, past);
    if (n == 1) stream_few<1>(wide, found, positions, heads, past);
    for (int64_t i = 0; i < n; i++) std::copy_n(found + i * dim, dim, out + queries.place(first + i));
  }
}

template void stream(const Bf16 *, float *, Heads, int64_t, int64_t, const Past<Bf16> &);
template void stream(const float *, float *, Heads, int64_t, int64_t, const Past<float> &);
