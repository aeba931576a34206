// Attention by online softmax in AMX tiles: of the queries (n, d) of one key head with its keys and values, block by
// block of KEYS keys. Scores (16 keys, 16 queries) are a product of keys as tile A and queries as tile B, so the
// softmax runs down the lines, for sixteen queries at once, and two lines of weights, interleaved, are a line of the
// next product's tile B: sums (16 elements, 16 queries) += V^T (16 elements, 32 keys) weights (32 keys, 16 queries).
#include "attention/online_softmax.h"

#ifdef HAVE_AMX
#include <algorithm>
#include <cmath>

#include "scratch.h"

namespace {

constexpr int64_t KEYS = 128;  // keys in a block

struct SoftmaxState {      // of sixteen queries, over all keys so far
  Ints positions, oldest;  // each sees keys at oldest < position <= its own
  Floats largest, total;   // an integer not below any score; the sum of 2^(score - largest)
};

// Tiles of sixteen queries, an even number
int64_t tiles_of(const Queries &queries) { return (queries.count + 31) / 32 * 2; }

// queries -> tiles [sixteen queries][depth][pair of elements][query][2], zeros for queries that do not exist
void pack_queries(const Bf16 *from, const Queries &queries, uint16_t *packed) {
  const int64_t depth = queries.dim / 32;
  for (int64_t m = 0; m < tiles_of(queries); m++)
    for (int64_t k = 0; k < depth; k++) {
      __m512i lines[16];
      for (int64_t i = 0; i < 16; i++) {
        const int64_t lane = 16 * m + i;
        lines[i] = lane < queries.count ? _mm512_loadu_si512(from + queries.offset(lane) + 32 * k) : __m512i{};
      }
      transpose(lines);
      for (int64_t i = 0; i < 16; i++) _mm512_store_si512(packed + (m * depth + k) * TILE + 32 * i, lines[i]);
    }
}

// KEYS keys -> tiles [sixteen keys][depth][key][32]; their values -> tiles [sixteen elements][32 keys][element][key]
void pack_keys_and_values(const Bf16 *const *keys, const Bf16 *const *values, int64_t dim, uint16_t *to_keys,
                          uint16_t *to_values) {
  const int64_t depth = dim / 32;
  for (int64_t j = 0; j < KEYS; j++)
    for (int64_t k = 0; k < depth; k++)
      _mm512_store_si512(to_keys + (j / 16 * depth + k) * TILE + j % 16 * 32, _mm512_loadu_si512(keys[j] + 32 * k));
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

// Scores (KEYS, 16) of keys from `position` on -> weights 2^(score - largest) in tiles [32 keys][pair of
// keys][query][2]; the state takes the block in, and `out` (dim, 16), the weighted sums of values so far, is scaled to
// the new largest
void softmax_update(float *scores, int64_t position, bool all_seen, float scale, SoftmaxState &state, uint16_t *weights,
                    float *out, int64_t dim) {
  Floats largest = state.largest;
  for (int64_t j = 0; j < KEYS; j++) {
    Floats score = load(scores + 16 * j) * scale;
    if (!all_seen) {
      const Ints at = Ints{} + int32_t(position + j);
      const Ints seen = (at <= state.positions) & (at > state.oldest);
      score = seen ? score : broadcast(MASKED);
    }
    store(scores + 16 * j, score);
    largest = maximum(score, largest);
  }
  largest = integer_above(largest);
  Floats total{};
  for (int64_t j = 0; j < KEYS; j += 2) {
    const Floats even = load(scores + 16 * j), odd = load(scores + 16 * j + 16);
    const Floats first = even <= MASKED ? Floats{} : exponential_base2(even - largest);
    const Floats second = odd <= MASKED ? Floats{} : exponential_base2(odd - largest);
    total += first + second;
    _mm512_store_si512(weights + 16 * j, interleave(first, second));
  }
  const Floats shrink = state.largest <= MASKED ? Floats{} : exponential_base2(state.largest - largest);
  if (_mm512_cmpneq_ps_mask((__m512)shrink, _mm512_set1_ps(1)))
    for (int64_t i = 0; i < dim; i++) store(out + 16 * i, load(out + 16 * i) * shrink);
  state.total = state.total * shrink + total;
  state.largest = largest;
}

// States before the first key, of queries whose first token has position `position`
void begin_states(SoftmaxState *states, const Queries &queries, int64_t position, int64_t window) {
  for (int64_t m = 0; m < tiles_of(queries); m++) {
    states[m].largest = broadcast(MASKED), states[m].total = Floats{};
    for (int64_t i = 0; i < 16; i++) {
      const int64_t at = position + std::min(16 * m + i, queries.count - 1) / queries.group;
      states[m].positions[i] = int32_t(at), states[m].oldest[i] = int32_t(std::max<int64_t>(at - window, -1));
    }
  }
}

// A block of keys from `position` on with 32 queries, whose sums are out (2, dim, 16)
void attend_to_block(const uint16_t *keys, const uint16_t *values, const uint16_t *queries, int64_t position,
                     SoftmaxState *states, float scale, int64_t dim, float *out, bool all_seen) {
  alignas(64) static thread_local float scores[2][KEYS * 16];
  alignas(64) static thread_local uint16_t weights[2][KEYS * 16];
  const int64_t depth = dim / 32, key_tiles = KEYS / 32;
  for (int64_t j = 0; j < 2 * key_tiles; j += 2) {
    zero_sums();
    for (int64_t k = 0; k < depth; k++) {
      load_weights(keys + (j * depth + k) * TILE, keys + ((j + 1) * depth + k) * TILE, 64);
      multiply_2x2(queries + k * TILE, queries + (depth + k) * TILE);
    }
    store_sums(scores[0] + 256 * j, scores[0] + 256 * (j + 1), scores[1] + 256 * j, scores[1] + 256 * (j + 1));
  }
  for (int m = 0; m < 2; m++)
    softmax_update(scores[m], position, all_seen, scale, states[m], weights[m], out + m * dim * 16, dim);
  for (int64_t i = 0; i < dim / 16; i += 2) {
    float *a = out + 256 * i, *b = a + 256, *c = a + dim * 16, *d = c + 256;
    load_sums(a, b, c, d);
    for (int64_t k = 0; k < key_tiles; k++) {
      load_weights(values + (i * (KEYS / 32) + k) * TILE, values + ((i + 1) * (KEYS / 32) + k) * TILE, 64);
      multiply_2x2(weights[0] + k * TILE, weights[1] + k * TILE);
    }
    store_sums(a, b, c, d);
  }
}

// sums [sixteen queries][dim][query], divided by the sums of weights -> out
void store_outputs(const float *sums, const SoftmaxState *states, const Queries &queries, float *out) {
  for (int64_t m = 0; m < tiles_of(queries); m++)
    for (int64_t i = 0; i < queries.dim; i += 16) {
      __m512i lines[16];
      for (int64_t line = 0; line < 16; line++)
        lines[line] = (__m512i)(load(sums + (m * queries.dim + i + line) * 16) / states[m].total);
      transpose(lines);
      for (int64_t lane = 16 * m; lane < std::min(16 * m + 16, queries.count); lane++)
        _mm512_storeu_si512(out + queries.offset(lane) + i, lines[lane % 16]);
    }
}

}  // namespace

void online_softmax_attention_amx(const Bf16 *from, float *out, Heads heads, int64_t position, int64_t count,
                                  const KeyValues<Bf16> &key_values) {
  static thread_local Scratch<uint16_t> query_buffer, key_buffer, value_buffer;
  static thread_local Scratch<float> sum_buffer;
  static thread_local Scratch<SoftmaxState> state_buffer;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
  const int64_t tiles = tiles_of(queries);
  uint16_t *packed = query_buffer.get(tiles * 16 * dim), *keys = key_buffer.get(KEYS * dim);
  uint16_t *values = value_buffer.get(KEYS * dim);
  float *sums = sum_buffer.get(tiles * 16 * dim);
  SoftmaxState *states = state_buffer.get(tiles);
  pack_queries(from, queries, packed);
  std::fill_n(sums, tiles * 16 * dim, 0.f);
  begin_states(states, queries, position, heads.window);
  const float scale = LOG2_E / std::sqrt(float(dim));
  const int64_t begin = std::max<int64_t>(0, position - heads.window + 1), end = position + count;
  static thread_local Scratch<Bf16> zero_buffer;
  Bf16 *zeros = zero_buffer.get(dim);
  std::fill_n(zeros, dim, Bf16{0});
  const Bf16 *key_rows[KEYS], *value_rows[KEYS];
  for (int64_t base = begin / KEYS * KEYS; base < end; base += KEYS) {
    key_values.locate(base, KEYS, begin, end, zeros, key_rows, value_rows);
    pack_keys_and_values(key_rows, value_rows, dim, keys, values);
    for (int64_t m = 0; m < tiles; m += 2) {
      const SoftmaxState &first = states[m], &second = states[m + 1];
      if (base > second.positions[15] || base + KEYS - 1 <= first.oldest[0]) continue;
      const bool all_seen = base + KEYS - 1 <= first.positions[0] && base > second.oldest[15];
      attend_to_block(keys, values, packed + m * 16 * dim, base, states + m, scale, dim, sums + m * 16 * dim, all_seen);
    }
  }
  store_outputs(sums, states, queries, out);
}

#else
// Never called: amx_available() is false.
void online_softmax_attention_amx(const Bf16 *, float *, Heads, int64_t, int64_t, const KeyValues<Bf16> &) {}
#endif
