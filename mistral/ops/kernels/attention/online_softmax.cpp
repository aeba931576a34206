// Attention by online softmax in vectors: of the queries (n, d) of one key head with its keys and values, block by
// block of KEYS keys. A block is packed once, and multiplied with all queries of the call (microkernel.h).
#include "attention/online_softmax.h"

#include <cmath>
#include <vector>

#include "attention/microkernel.h"
#include "scratch.h"

namespace {

constexpr int64_t KEYS = 128;  // keys in a block

struct SoftmaxState {      // of a query, over all keys so far
  float largest = MASKED;  // an integer not below any score
  float total = 0;         // the sum of 2^(score - largest)
};

// Masks the scores of those keys of a block from position `first` on that a query does not see
inline void mask_scores(float *scores, int64_t first, int64_t position, int64_t window) {
  for (int64_t j = 0; j < KEYS; j++)
    if (first + j > position || first + j <= position - window) scores[j] = MASKED;
}

// Scores of a block -> weights 2^(score - largest), rounded to the element type; the state takes the block in, and
// `out` (dim,), the weighted sum of values so far, is scaled to the new largest
template <class Element>
inline void softmax_update(float *scores, SoftmaxState &state, float *out, int64_t dim) {
  Floats lanes = broadcast(state.largest);
  for (int64_t j = 0; j < KEYS; j += LANES) lanes = maximum(load(scores + j), lanes);
  float largest = lanes[0];
  for (int i = 1; i < LANES; i++) largest = largest > lanes[i] ? largest : lanes[i];
  largest = integer_above(broadcast(largest))[0];
  Floats sums{};
  for (int64_t j = 0; j < KEYS; j += LANES) {
    const Floats score = load(scores + j), power = exponential_base2(score - largest);
    const Floats weight = score <= MASKED ? Floats{} : power;
    sums += weight;
    store(scores + j, rounded_to<Element>(weight));
  }
  const float shrink = state.largest <= MASKED ? 0 : exponential_base2(broadcast(state.largest - largest))[0];
  if (shrink != 1)
    for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
  state.total = state.total * shrink + sum(sums);
  state.largest = largest;
}

// Products of a query at `position` with the keys of a block from position `first` on -> weights (KEYS,) as M
// multiplies them; state and `out` as in softmax_update
template <class M, class Element>
inline void weigh_keys(float *scores, float scale, int64_t first, int64_t position, int64_t window, SoftmaxState &state,
                       float *out, int64_t dim, typename M::Element *weights) {
  for (int64_t i = 0; i < KEYS; i += LANES) store(scores + i, load(scores + i) * scale);
  if (first + KEYS > position + 1 || first <= position - window) mask_scores(scores, first, position, window);
  softmax_update<Element>(scores, state, out, dim);
  for (int64_t i = 0; i < KEYS; i += LANES) M::store(weights + i, load(scores + i));
}

// The first `count` keys -> strips [key / NR][word][key % NR]; `wide`: dim, filled up with zeros
template <class M, class Element>
void pack_keys(const Element *const *keys, int64_t count, int64_t dim, int64_t wide, typename M::Vector *to) {
  for (int64_t n = 0; n < count; n += LANES)
    for (int64_t i = 0; i < wide; i += LANES * M::WORD) {
      typename M::Vector lines[LANES];
      for (int64_t j = 0; j < LANES; j++) lines[j] = M::load_words(keys[n + j] + i, dim - i);
      transpose(lines, to + (n / NR * wide + i) / M::WORD * NR_VECTORS + n % NR / LANES);
    }
}

// Values -> strips [element / NR][word of keys][element % NR]
template <class M, class Element>
void pack_values(const Element *const *values, int64_t dim, int64_t wide, typename M::Vector *to) {
  for (int64_t j = 0; j < KEYS; j += M::WORD)
    for (int64_t i = 0; i < wide; i += LANES)
      to[(i / NR * KEYS + j) / M::WORD * NR_VECTORS + i % NR / LANES] = M::interleave_rows(values + j, i, dim - i);
}

// See online_softmax_attention
template <class M, class Element>
void attend_in_blocks(const Element *from, float *out, Heads heads, int64_t position, int64_t count,
                      const KeyValues<Element> &key_values) {
  using Word = typename M::Element;
  static thread_local Scratch<Word> query_buffer, weight_buffer;
  static thread_local Scratch<Element> zero_buffer;
  static thread_local Scratch<float> key_buffer, value_buffer, score_buffer, sum_buffer;
  static thread_local std::vector<SoftmaxState> states;
  const int64_t dim = heads.head_dim, wide = (dim + 31) / 32 * 32, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
  Word *own = query_buffer.get(queries.count * wide), *weights = weight_buffer.get(queries.count * KEYS);
  auto *keys = reinterpret_cast<typename M::Vector *>(key_buffer.get(KEYS * wide / M::WORD));
  auto *values = reinterpret_cast<typename M::Vector *>(value_buffer.get(KEYS * wide / M::WORD));
  float *scores = score_buffer.get(queries.count * KEYS), *sums = sum_buffer.get(queries.count * wide);
  states.assign(queries.count, SoftmaxState());
  std::fill_n(sums, queries.count * wide, 0.f);
  std::fill_n(own, queries.count * wide, Word(0));
  for (int64_t n = 0; n < queries.count; n++) M::copy(own + n * wide, from + queries.offset(n), dim);
  const float scale = LOG2_E / std::sqrt(float(dim));
  const int64_t begin = std::max<int64_t>(0, position - heads.window + 1), end = position + count;
  Element *zeros = zero_buffer.get(dim);
  std::fill_n(zeros, dim, Element());
  const Element *key_rows[KEYS], *value_rows[KEYS];
  for (int64_t base = begin / KEYS * KEYS; base < end; base += KEYS) {
    key_values.locate(base, KEYS, begin, end, zeros, key_rows, value_rows);
    const int64_t seen = std::min(KEYS, (end - base + NR - 1) / NR * NR);  // the scores of others are masked
    pack_keys<M>(key_rows, seen, dim, wide, keys);
    multiply_packed<M>(own, wide, keys, wide / M::WORD, seen, scores, KEYS, queries.count, true);
    for (int64_t n = 0; n < queries.count; n++)
      weigh_keys<M, Element>(scores + n * KEYS, scale, base, position + n / group, heads.window, states[n],
                             sums + n * wide, wide, weights + n * KEYS);
    if (queries.count <= MR) {  // packing would take longer than the product
      multiply_rows_of<M>(weights, KEYS, value_rows, KEYS / M::WORD, dim, wide, sums, wide, queries.count, false);
      continue;
    }
    pack_values<M>(value_rows, dim, wide, values);
    multiply_packed<M>(weights, KEYS, values, KEYS / M::WORD, wide, sums, wide, queries.count, false);
  }
  for (int64_t n = 0; n < queries.count; n++)
    for (int64_t i = 0; i < dim; i++) out[queries.offset(n) + i] = sums[n * wide + i] / states[n].total;
}

}  // namespace

int64_t tokens_at_once(Heads heads, bool precise) {
  const int64_t queries = !precise && amx_available() ? 512 : 256;
  return std::max<int64_t>(1, queries * heads.kv_heads / heads.heads);
}

void online_softmax_attention(const float *queries, float *out, Heads heads, int64_t position, int64_t count,
                              const KeyValues<float> &key_values) {
  attend_in_blocks<FloatPanel>(queries, out, heads, position, count, key_values);
}

void online_softmax_attention(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count,
                              const KeyValues<Bf16> &key_values) {
  if (heads.head_dim % 32 == 0 && amx_available())
    return online_softmax_attention_amx(queries, out, heads, position, count, key_values);
#ifdef HAVE_BF16
  if (bf16_pairs_pay()) return attend_in_blocks<PairPanel>(queries, out, heads, position, count, key_values);
#endif
  attend_in_blocks<FloatPanel>(queries, out, heads, position, count, key_values);
}
