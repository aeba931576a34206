// The same stream for many queries in products of bfloat16 pairs: a block of keys, then of values, is laid out like a
// panel of weights.
#include <cmath>

#include "panels.h"
#include "stream.h"

#ifdef HAVE_PAIRS
namespace {

constexpr int64_t KEYS = 128;  // keys at once

// Keys (KEYS, dim) -> strips of 32 keys [strip][pair of elements][key]; values -> strips of 32 elements
// [strip][pair of keys][element]
void lay_out_keys(const Bf16 *const *keys, const Bf16 *const *values, int64_t dim, Pairs *to_keys, Pairs *to_values) {
  for (int64_t n = 0; n < KEYS; n += LANES)
    for (int64_t i = 0; i < dim; i += 32) {
      Pairs lines[LANES];
      for (int64_t j = 0; j < LANES; j++) lines[j] = PairMath::load(&keys[n + j][i].bits);
      turn_over(lines, to_keys + (n / STRIP * (dim / 2) + i / 2) * ACROSS + n % STRIP / LANES);
    }
  const auto value = [&](int64_t j, int64_t i) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values[j] + i)));
  };
  for (int64_t j = 0; j < KEYS; j += 2)
    for (int64_t i = 0; i < dim; i += LANES)
      to_values[(i / STRIP * (KEYS / 2) + j / 2) * ACROSS + i % STRIP / LANES] =
          (Pairs)(value(j, i) | _mm512_slli_epi32(value(j + 1, i), 16));
}

}  // namespace

void stream_paired(const Bf16 *from, float *out, Heads heads, int64_t position, int64_t count,
                   const Past<Bf16> &past) {
  static thread_local Scratch<uint16_t> kept_queries, kept_weights;
  static thread_local Scratch<Bf16> kept_none;
  static thread_local Scratch<float> kept_keys, kept_values, kept_scores, kept_sums;
  static thread_local std::vector<Running> running;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
  uint16_t *own = kept_queries.get(queries.count * dim), *weights = kept_weights.get(queries.count * KEYS);
  Pairs *keys = reinterpret_cast<Pairs *>(kept_keys.get(KEYS * dim / 2));
  Pairs *values = reinterpret_cast<Pairs *>(kept_values.get(KEYS * dim / 2));
  float *scores = kept_scores.get(queries.count * KEYS), *sums = kept_sums.get(queries.count * dim);
  running.assign(queries.count, Running());
  std::fill_n(sums, queries.count * dim, 0.f);
  for (int64_t n = 0; n < queries.count; n++) memcpy(own + n * dim, from + queries.place(n), dim * 2);
  const float scale = LOG2_E / std::sqrt(float(dim));
  const int64_t begin = std::max<int64_t>(0, position - heads.window + 1), end = position + count;
  Bf16 *none = kept_none.get(dim);
  std::fill_n(none, dim, Bf16{0});
  const Bf16 *found_keys[KEYS], *found_values[KEYS];
  for (int64_t base = begin / KEYS * KEYS; base < end; base += KEYS) {
    past.find(base, KEYS, begin, end, none, found_keys, found_values);
    lay_out_keys(found_keys, found_values, dim, keys, values);
    for (int64_t strip = 0; strip < KEYS / STRIP; strip++)
      meet_all<PairMath>(own, dim, keys + strip * dim / 2 * ACROSS, dim / 2, scores + strip * STRIP, KEYS,
                         queries.count, true);
    for (int64_t n = 0; n < queries.count; n++) {
      const int64_t at = position + n / group;
      float *row = scores + n * KEYS;
      for (int64_t i = 0; i < KEYS; i += LANES) store(row + i, load(row + i) * scale);
      if (base + KEYS > at + 1 || base <= at - heads.window) hide(row, base, KEYS, at, heads.window);
      soften<Bf16>(row, KEYS, running[n], sums + n * dim, dim);
      for (int64_t i = 0; i < KEYS; i += LANES) store_bf16(weights + n * KEYS + i, load(row + i));
    }
    for (int64_t strip = 0; strip < dim / STRIP; strip++)
      meet_all<PairMath>(weights, KEYS, values + strip * KEYS / 2 * ACROSS, KEYS / 2, sums + strip * STRIP, dim,
                         queries.count, false);
  }
  for (int64_t n = 0; n < queries.count; n++)
    for (int64_t i = 0; i < dim; i++) out[queries.place(n) + i] = sums[n * dim + i] / running[n].total;
}
#endif
