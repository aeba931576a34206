// The same stream in AMX tiles, for many queries. Scores stand with a key in each line and sixteen queries along it, so
// that a softmax runs down the lines, and two lines of weights are a line of the next product's second tile.
#include "attention/online_softmax.h"

#ifdef HAVE_TILES
#include <algorithm>
#include <cmath>

namespace {

constexpr int64_t KEYS = 128;  // keys at once

struct Lanes {  // sixteen queries: their positions, integers above all scores so far, sums of 2^(score - it)
  Ints positions, oldest;
  Floats largest, total;
};

int64_t tiles_of(const Queries &queries) { return (queries.count + 31) / 32 * 2; }

// queries (bfloat16) -> tiles [sixteen queries][depth][pair of elements][query][2]
void pack_queries(const Bf16 *from, const Queries &queries, uint16_t *packed) {
  const int64_t deep = queries.dim / 32;
  for (int64_t m = 0; m < tiles_of(queries); m++)
    for (int64_t k = 0; k < deep; k++) {
      __m512i lines[16];
      for (int64_t i = 0; i < 16; i++) {
        const int64_t lane = 16 * m + i;
        lines[i] = lane < queries.count ? _mm512_loadu_si512(from + queries.place(lane) + 32 * k) : __m512i{};
      }
      transpose(lines);
      for (int64_t i = 0; i < 16; i++) _mm512_store_si512(packed + (m * deep + k) * TILE + 32 * i, lines[i]);
    }
}

// KEYS keys -> tiles [sixteen keys][depth][key][32]; values -> tiles [sixteen elements][32 keys][element][key]
void lay_out_keys(const Bf16 *const *keys, const Bf16 *const *values, int64_t dim, uint16_t *to_keys,
                  uint16_t *to_values) {
  const int64_t deep = dim / 32;
  for (int64_t j = 0; j < KEYS; j++)
    for (int64_t k = 0; k < deep; k++)
      _mm512_store_si512(to_keys + (j / 16 * deep + k) * TILE + j % 16 * 32, _mm512_loadu_si512(keys[j] + 32 * k));
  const auto value = [&](int64_t j, int64_t i) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values[j] + i)));
  };
  for (int64_t i = 0; i < dim; i += 16)
    for (int64_t j = 0; j < KEYS; j += 32) {
      __m512i lines[16];
      for (int64_t pair = 0; pair < 16; pair++)
        lines[pair] = value(j + 2 * pair, i) | _mm512_slli_epi32(value(j + 2 * pair + 1, i), 16);
      transpose(lines);
      uint16_t *to = to_values + (i / 16 * (KEYS / 32) + j / 32) * TILE;
      for (int64_t line = 0; line < 16; line++) _mm512_store_si512(to + 32 * line, lines[line]);
    }
}

// Scores of keys from `position` on -> weights in tiles; sums so far (dim, 16) are brought to the same scale
void soften(float *scores, int64_t position, bool all_seen, float scale, Lanes &lanes, uint16_t *weights,
            float *out, int64_t dim) {
  Floats most = lanes.largest;
  for (int64_t j = 0; j < KEYS; j++) {
    Floats score = load(scores + 16 * j) * scale;
    if (!all_seen) {
      const Ints at = Ints{} + int32_t(position + j);
      const Ints seen = (at <= lanes.positions) & (at > lanes.oldest);
      score = seen ? score : broadcast(HIDDEN);
    }
    store(scores + 16 * j, score);
    most = larger(score, most);
  }
  most = integer_above(most);
  Floats total{};
  for (int64_t j = 0; j < KEYS; j += 2) {
    const Floats even = load(scores + 16 * j), odd = load(scores + 16 * j + 16);
    const Floats first = even <= HIDDEN ? Floats{} : power_of_two(even - most);
    const Floats second = odd <= HIDDEN ? Floats{} : power_of_two(odd - most);
    total += first + second;
    _mm512_store_si512(weights + 16 * j, interleave(first, second));
  }
  const Floats shrink = lanes.largest <= HIDDEN ? Floats{} : power_of_two(lanes.largest - most);
  if (_mm512_cmpneq_ps_mask((__m512)shrink, _mm512_set1_ps(1)))
    for (int64_t i = 0; i < dim; i++) store(out + 16 * i, load(out + 16 * i) * shrink);
  lanes.total = lanes.total * shrink + total;
  lanes.largest = most;
}

// One block of keys with 32 queries
void attend(const uint16_t *keys, const uint16_t *values, const uint16_t *queries, int64_t position, Lanes *lanes,
            float scale, int64_t dim, float *out, bool all_seen) {
  alignas(64) static thread_local float scores[2][KEYS * 16];
  alignas(64) static thread_local uint16_t weights[2][KEYS * 16];
  const int64_t deep = dim / 32, across = KEYS / 32;
  for (int64_t j = 0; j < 2 * across; j += 2) {
    zero_sums();
    for (int64_t k = 0; k < deep; k++) {
      load_weights(keys + (j * deep + k) * TILE, keys + ((j + 1) * deep + k) * TILE, 64);
      multiply_two(queries + k * TILE, queries + (deep + k) * TILE);
    }
    store_sums(scores[0] + 256 * j, scores[0] + 256 * (j + 1), scores[1] + 256 * j, scores[1] + 256 * (j + 1));
  }
  for (int m = 0; m < 2; m++)
    soften(scores[m], position, all_seen, scale, lanes[m], weights[m], out + m * dim * 16, dim);
  for (int64_t i = 0; i < dim / 16; i += 2) {
    float *a = out + 256 * i, *b = a + 256, *c = a + dim * 16, *d = c + 256;
    load_sums(a, b, c, d);
    for (int64_t k = 0; k < across; k++) {
      load_weights(values + (i * (KEYS / 32) + k) * TILE, values + ((i + 1) * (KEYS / 32) + k) * TILE, 64);
      multiply_two(weights[0] + k * TILE, weights[1] + k * TILE);
    }
    store_sums(a, b, c, d);
  }
}

}  // namespace

void stream_tiled(const Bf16 *from, float *out, Heads heads, int64_t position, int64_t count,
                  const Past<Bf16> &past) {
  static thread_local Scratch<uint16_t> kept_queries, kept_keys, kept_values;
  static thread_local Scratch<float> kept_sums;
  static thread_local Scratch<Lanes> kept_lanes;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
  const int64_t tiles = tiles_of(queries), last = queries.count - 1;
  uint16_t *packed = kept_queries.get(tiles * 16 * dim), *keys = kept_keys.get(KEYS * dim);
  uint16_t *values = kept_values.get(KEYS * dim);
  float *sums = kept_sums.get(tiles * 16 * dim);
  Lanes *lanes = kept_lanes.get(tiles);
  pack_queries(from, queries, packed);
  std::fill_n(sums, tiles * 16 * dim, 0.f);
  for (int64_t m = 0; m < tiles; m++) {
    lanes[m].largest = broadcast(HIDDEN), lanes[m].total = Floats{};
    for (int64_t i = 0; i < 16; i++) {
      const int64_t at = position + std::min(16 * m + i, last) / group;
      lanes[m].positions[i] = int32_t(at), lanes[m].oldest[i] = int32_t(std::max<int64_t>(at - heads.window, -1));
    }
  }
  const float scale = LOG2_E / std::sqrt(float(dim));
  const int64_t begin = std::max<int64_t>(0, position - heads.window + 1), end = position + count;
  static thread_local Scratch<Bf16> kept_none;
  Bf16 *none = kept_none.get(dim);
  std::fill_n(none, dim, Bf16{0});
  const Bf16 *found_keys[KEYS], *found_values[KEYS];
  for (int64_t base = begin / KEYS * KEYS; base < end; base += KEYS) {
    past.find(base, KEYS, begin, end, none, found_keys, found_values);
    lay_out_keys(found_keys, found_values, dim, keys, values);
    for (int64_t m = 0; m < tiles; m += 2) {
      const Lanes &first = lanes[m], &second = lanes[m + 1];
      if (base > second.positions[15] || base + KEYS - 1 <= first.oldest[0]) continue;
      const bool all_seen = base + KEYS - 1 <= first.positions[0] && base > second.oldest[15];
      attend(keys, values, packed + m * 16 * dim, base, lanes + m, scale, dim, sums + m * 16 * dim, all_seen);
    }
  }
  for (int64_t m = 0; m < tiles; m++)
    for (int64_t i = 0; i < dim; i += 16) {
      __m512i lines[16];
      for (int64_t line = 0; line < 16; line++)
        lines[line] = (__m512i)(load(sums + (m * dim + i + line) * 16) / lanes[m].total);
      transpose(lines);
      for (int64_t lane = 16 * m; lane < std::min(16 * m + 16, queries.count); lane++)
        _mm512_storeu_si512(out + queries.place(lane) + i, lines[lane % 16]);
    }
}

#else
void stream_tiled(const Bf16 *, float *, Heads, int64_t, int64_t, const Past<Bf16> &) {}
#endif
