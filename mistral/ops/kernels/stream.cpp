#include "stream.h"

#include <algorithm>
#include <cmath>

#include "weights.h"

namespace {

constexpr int64_t KEYS = 64;  // keys at once
constexpr int QUERIES = 4;    // queries that share what is read of them

// Scores (n, KEYS) of n queries with `count` keys
template <int N, class Element>
void score(const float *queries, int64_t dim, const Element *keys, int64_t stride, int64_t count, float scale,
           float scores[QUERIES][KEYS]) {
  for (int64_t j = 0; j < count; j++) {
    const Element *key = keys + j * stride;
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
void gather(const float weights[QUERIES][KEYS], const Element *values, int64_t stride, int64_t count, int64_t dim,
            float *out) {
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    Floats sums[N];
    for (int n = 0; n < N; n++) sums[n] = load(out + n * dim + i);
    for (int64_t j = 0; j < count; j++) {
      const Floats value = load(values + j * stride + i);
      for (int n = 0; n < N; n++) sums[n] += value * weights[n][j];
    }
    for (int n = 0; n < N; n++) store(out + n * dim + i, sums[n]);
  }
  for (; i < dim; i++)
    for (int n = 0; n < N; n++)
      for (int64_t j = 0; j < count; j++)
        out[n * dim + i] += weights[n][j] * one(values + j * stride + i);
}

// N queries of one token or of neighbouring ones, at these positions
template <int N, class Element>
void stream_few(const float *queries, float *out, const int64_t *positions, Heads heads,
                const Segment<Element> *segments, int n_segments) {
  const int64_t dim = heads.head_dim, oldest = positions[0] - heads.window + 1, newest = positions[N - 1];
  const float scale = LOG2_E / std::sqrt(float(dim));
  alignas(64) float scores[QUERIES][KEYS];
  Running running[N];
  for (int s = 0; s < n_segments; s++) {
    const Segment<Element> &run = segments[s];
    const int64_t from = std::max<int64_t>(0, oldest - run.position);
    const int64_t to = std::min(run.count, newest - run.position + 1);
    for (int64_t j = from; j < to; j += KEYS) {
      const int64_t count = std::min(KEYS, to - j), first = run.position + j;
      score<N>(queries, dim, run.keys + j * run.stride, run.stride, count, scale, scores);
      for (int n = 0; n < N; n++) {
        hide(scores[n], first, count, positions[n], heads.window);
        soften<Element>(scores[n], count, running[n], out + n * dim, dim);
      }
      gather<N>(scores, run.values + j * run.stride, run.stride, count, dim, out);
    }
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
            const Segment<Element> *segments, int n_segments) {
  static thread_local Scratch<float> kept, kept_out;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
#ifdef HAVE_PAIRS
  if constexpr (sizeof(Element) == 2)
    if (dim % 32 == 0 && queries.count >= 16) {
      if (tiles_available()) return stream_tiled(from, out, heads, position, count, segments, n_segments);
      return stream_paired(from, out, heads, position, count, segments, n_segments);
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
    if (n == 4) stream_few<4>(wide, found, positions, heads, segments, n_segments);
    if (n == 3) stream_few<3>(wide, found, positions, heads, segments, n_segments);
    if (n == 2) stream_few<2>(wide, found, positions, heads, segments, n_segments);
    if (n == 1) stream_few<1>(wide, found, positions, heads, segments, n_segments);
    for (int64_t i = 0; i < n; i++) std::copy_n(found + i * dim, dim, out + queries.place(first + i));
  }
}

template void stream(const Bf16 *, float *, Heads, int64_t, int64_t, const Segment<Bf16> *, int);
template void stream(const float *, float *, Heads, int64_t, int64_t, const Segment<float> *, int);
