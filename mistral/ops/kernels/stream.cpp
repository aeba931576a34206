#include "stream.h"

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace {

constexpr int64_t KEYS = 64;  // keys at once
constexpr int QUERIES = 4;    // queries that share what is read of them

struct Running {  // of each query: an integer above all scores so far, and the sum of 2^(score - largest)
  float largest[QUERIES], total[QUERIES];
};

// Scores (n, KEYS) of n queries with `count` keys
template <int N>
void score(const float *queries, int64_t dim, const uint16_t *keys, int64_t stride, int64_t count, float scale,
           float scores[QUERIES][KEYS]) {
  for (int64_t j = 0; j < count; j++) {
    const Bf16 *key = reinterpret_cast<const Bf16 *>(keys + j * stride);
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
template <int N>
void gather(const float weights[QUERIES][KEYS], const uint16_t *values, int64_t stride, int64_t count, int64_t dim,
            float *out) {
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    Floats sums[N];
    for (int n = 0; n < N; n++) sums[n] = load(out + n * dim + i);
    for (int64_t j = 0; j < count; j++) {
      const Floats value = load(reinterpret_cast<const Bf16 *>(values + j * stride + i));
      for (int n = 0; n < N; n++) sums[n] += value * weights[n][j];
    }
    for (int n = 0; n < N; n++) store(out + n * dim + i, sums[n]);
  }
  for (; i < dim; i++)
    for (int n = 0; n < N; n++)
      for (int64_t j = 0; j < count; j++)
        out[n * dim + i] += weights[n][j] * one(reinterpret_cast<const Bf16 *>(values + j * stride + i));
}

// Scores -> weights relative to the largest so far; `out` is brought to the same scale
void soften(float *scores, int64_t count, float &largest, float &total, float *out, int64_t dim) {
  for (int64_t j = count; j % LANES; j++) scores[j] = HIDDEN;
  Floats most = broadcast(largest);
  for (int64_t j = 0; j < count; j += LANES) most = larger(load(scores + j), most);
  float now = most[0];
  for (int i = 1; i < LANES; i++) now = std::max(now, float(most[i]));
  now = integer_above(broadcast(now))[0];
  Floats sums{};
  for (int64_t j = 0; j < count; j += LANES) {
    const Floats s = load(scores + j), weight = power_of_two(s - now);
    const Floats shown = s <= HIDDEN ? Floats{} : weight;
    sums += shown;
    store(scores + j, round_bf16(shown));
  }
  const float shrink = largest <= HIDDEN ? 0 : power_of_two(broadcast(largest - now))[0];
  if (shrink != 1)
    for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
  total = total * shrink + sum(sums);
  largest = now;
}

// N queries of one token or of neighbouring ones, at these positions
template <int N>
void stream_few(const float *queries, float *out, const int64_t *positions, Heads heads, const Segment *segments,
                int n_segments) {
  const int64_t dim = heads.head_dim, oldest = positions[0] - heads.window + 1, newest = positions[N - 1];
  const float scale = LOG2_E / std::sqrt(float(dim));
  alignas(64) float scores[QUERIES][KEYS];
  Running running;
  for (int n = 0; n < N; n++) running.largest[n] = HIDDEN, running.total[n] = 0;
  for (int s = 0; s < n_segments; s++) {
    const Segment &run = segments[s];
    const int64_t from = std::max<int64_t>(0, oldest - run.position);
    const int64_t to = std::min(run.count, newest - run.position + 1);
    for (int64_t j = from; j < to; j += KEYS) {
      const int64_t count = std::min(KEYS, to - j), first = run.position + j;
      score<N>(queries, dim, run.keys + j * run.stride, run.stride, count, scale, scores);
      for (int n = 0; n < N; n++) {
        for (int64_t i = 0; i < count; i++)
          if (first + i > positions[n] || first + i <= positions[n] - heads.window) scores[n][i] = HIDDEN;
        soften(scores[n], count, running.largest[n], running.total[n], out + n * dim, dim);
      }
      gather<N>(scores, run.values + j * run.stride, run.stride, count, dim, out);
    }
  }
  for (int n = 0; n < N; n++)
    for (int64_t i = 0; i < dim; i++) out[n * dim + i] /= running.total[n];
}

}  // namespace

int64_t tokens_at_once(Heads heads) {
  return std::max<int64_t>(1, (tiles_available() ? 512 : 64) * heads.kv_heads / heads.heads);
}

void stream(const uint16_t *queries, float *out, Heads heads, int64_t position, int64_t count, const Segment *segments,
            int n_segments) {
  static thread_local Scratch<float> kept, kept_out;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads, all = count * group;
  if (tiles_available() && dim % 32 == 0 && all >= 16)
    return stream_tiled(queries, out, heads, position, count, segments, n_segments);
  const auto place = [&](int64_t n) { return (n / group * heads.heads + n % group) * dim; };
  float *wide = kept.get(QUERIES * dim), *found = kept_out.get(QUERIES * dim);
  for (int64_t first = 0; first < all; first += QUERIES) {
    const int64_t n = std::min<int64_t>(QUERIES, all - first);
    int64_t positions[QUERIES];
    std::fill_n(found, n * dim, 0.f);
    for (int64_t i = 0; i < n; i++) {
      positions[i] = position + (first + i) / group;
      const Bf16 *query = reinterpret_cast<const Bf16 *>(queries + place(first + i));
      for (int64_t j = 0; j < dim; j++) wide[i * dim + j] = one(query + j);
    }
    if (n == 4) stream_few<4>(wide, found, positions, heads, segments, n_segments);
    if (n == 3) stream_few<3>(wide, found, positions, heads, segments, n_segments);
    if (n == 2) stream_few<2>(wide, found, positions, heads, segments, n_segments);
    if (n == 1) stream_few<1>(wide, found, positions, heads, segments, n_segments);
    for (int64_t i = 0; i < n; i++) std::copy_n(found + i * dim, dim, out + place(first + i));
  }
}
