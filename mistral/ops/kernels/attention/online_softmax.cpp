// The stream in panels: a block of keys, then of values, is laid out once and meets all queries of a task.
#include <cmath>

#include "attention/microkernel.h"
#include "attention/online_softmax.h"
#include "matmul/activations.h"

constexpr int64_t PANEL_KEYS = 128;  // keys at once

// Keys -> strips [strip of keys][word][key]; `wide`: dim, filled up with zeros
template <class M, class Element>
void lay_out_keys(const Element *const *keys, int64_t dim, int64_t wide, typename M::Vector *to) {
  for (int64_t n = 0; n < PANEL_KEYS; n += LANES)
    for (int64_t i = 0; i < wide; i += LANES * M::DEPTH) {
      typename M::Vector lines[LANES];
      for (int64_t j = 0; j < LANES; j++) lines[j] = M::along(keys[n + j] + i, dim - i);
      turn_over(lines, to + (n / STRIP * wide + i) / M::DEPTH * ACROSS + n % STRIP / LANES);
    }
}

// Values -> strips [strip of elements][word of keys][element]
template <class M, class Element>
void lay_out_values(const Element *const *values, int64_t dim, int64_t wide, typename M::Vector *to) {
  for (int64_t j = 0; j < PANEL_KEYS; j += M::DEPTH)
    for (int64_t i = 0; i < wide; i += LANES)
      to[(i / STRIP * PANEL_KEYS + j) / M::DEPTH * ACROSS + i % STRIP / LANES] = M::across(values + j, i, dim - i);
}

template <class M, class Element>
void stream_in_panels(const Element *from, float *out, Heads heads, int64_t position, int64_t count,
                      const Past<Element> &past) {
  using Word = typename M::Element;
  static thread_local Scratch<Word> kept_queries, kept_weights;
  static thread_local Scratch<Element> kept_none;
  static thread_local Scratch<float> kept_keys, kept_values, kept_scores, kept_sums;
  static thread_local std::vector<Running> running;
  const int64_t dim = heads.head_dim, wide = (dim + 31) / 32 * 32, group = heads.heads / heads.kv_heads;
  const Queries queries = {count * group, group, heads.heads, dim};
  Word *own = kept_queries.get(queries.count * wide), *weights = kept_weights.get(queries.count * PANEL_KEYS);
  auto *keys = reinterpret_cast<typename M::Vector *>(kept_keys.get(PANEL_KEYS * wide / M::DEPTH));
  auto *values = reinterpret_cast<typename M::Vector *>(kept_values.get(PANEL_KEYS * wide / M::DEPTH));
  float *scores = kept_scores.get(queries.count * PANEL_KEYS), *sums = kept_sums.get(queries.count * wide);
  running.assign(queries.count, Running());
  std::fill_n(sums, queries.count * wide, 0.f);
  std::fill_n(own, queries.count * wide, Word(0));
  for (int64_t n = 0; n < queries.count; n++) M::copy(own + n * wide, from + queries.place(n), dim);
  const float scale = LOG2_E / std::sqrt(float(dim));
  const int64_t begin = std::max<int64_t>(0, position - heads.window + 1), end = position + count;
  Element *none = kept_none.get(dim);
  std::fill_n(none, dim, Element());
  const Element *found_keys[PANEL_KEYS], *found_values[PANEL_KEYS];
  for (int64_t base = begin / PANEL_KEYS * PANEL_KEYS; base < end; base += PANEL_KEYS) {
    past.find(base, PANEL_KEYS, begin, end, none, found_keys, found_values);
    lay_out_keys<M>(found_keys, dim, wide, keys);
    lay_out_values<M>(found_values, dim, wide, values);
    for (int64_t strip = 0; strip < PANEL_KEYS / STRIP; strip++)
      meet_panel<M>(own, wide, keys + strip * wide / M::DEPTH * ACROSS, wide / M::DEPTH, scores + strip * STRIP,
                    PANEL_KEYS, queries.count, true);
    for (int64_t n = 0; n < queries.count; n++) {
      const int64_t at = position + n / group;
      float *row = scores + n * PANEL_KEYS;
      for (int64_t i = 0; i < PANEL_KEYS; i += LANES) store(row + i, load(row + i) * scale);
      if (base + PANEL_KEYS > at + 1 || base <= at - heads.window) hide(row, base, PANEL_KEYS, at, heads.window);
      soften<Element>(row, PANEL_KEYS, running[n], sums + n * wide, wide);
      for (int64_t i = 0; i < PANEL_KEYS; i += LANES) M::keep(weights + n * PANEL_KEYS + i, load(row + i));
    }
    for (int64_t strip = 0; strip < wide / STRIP; strip++)
      meet_panel<M>(weights, PANEL_KEYS, values + strip * PANEL_KEYS / M::DEPTH * ACROSS, PANEL_KEYS / M::DEPTH,
                    sums + strip * STRIP, wide, queries.count, false);
  }
  for (int64_t n = 0; n < queries.count; n++)
    for (int64_t i = 0; i < dim; i++) out[queries.place(n) + i] = sums[n * wide + i] / running[n].total;
}

int64_t tokens_at_once(Heads heads, bool precise) {
  const int64_t queries = !precise && tiles_available() ? 512 : 256;
  return std::max<int64_t>(1, queries * heads.kv_heads / heads.heads);
}

void stream(const float *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<float> &past) {
  stream_in_panels<FloatPanel>(queries, out, heads, position, count, past);
}

void stream(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<Bf16> &past) {
  if (heads.head_dim % 32 == 0 && tiles_available()) return stream_tiled(queries, out, heads, position, count, past);
#ifdef HAVE_PAIRS
  if (pairs_pay()) return stream_in_panels<PairPanel>(queries, out, heads, position, count, past);
#endif
  stream_in_panels<FloatPanel>(queries, out, heads, position, count, past);
}
