// The queries of one key head against its keys, block by block. Blocks begin at multiples of their size, whatever the
// tokens of a step, so that a query's sums are formed in one order and its result is the same bit for bit in any chunk.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "matmul/matmul_amx.h"
#include "simd.h"
#ifdef HAVE_TILES
#include "amx.h"
#endif

// Scores are taken to base 2, and weights relative to an integer above the largest. So a larger score that comes later
// changes them by a power of two, and they round to bfloat16 as they would have in any other order.
constexpr float HIDDEN = -1e30f, LOG2_E = 1.44269504f;

template <class Element>  // Bf16, or float where nothing is rounded
struct Past {             // where one head's keys and values of a row lie: in the ring, then among the new ones
  const Element *ring_keys, *ring_values, *new_keys, *new_values;
  int64_t slots, before, stride, dim;  // position `before` is the first new one; new ones are `stride` elements apart

  // Keys and values of positions [base, base + count), `none` for those outside [from, to)
  void find(int64_t base, int64_t count, int64_t from, int64_t to, const Element *none, const Element **keys,
            const Element **values) const {
    int64_t slot = slots ? std::max(base, from) % slots : 0;
    for (int64_t j = 0; j < count; j++) {
      const int64_t p = base + j;
      keys[j] = values[j] = none;
      if (p < from || p >= to) continue;
      const int64_t at = p < before ? slot * dim : (p - before) * stride;
      keys[j] = (p < before ? ring_keys : new_keys) + at;
      values[j] = (p < before ? ring_values : new_values) + at;
      if (++slot == slots) slot = 0;
    }
  }
};

struct Task {  // tokens [first, first + count) of a row whose tokens start at `start`, for one key head
  int64_t row, start, first, count, head;
};

#if defined(HAVE_TILES) && !defined(EMULATE_TILES)
using StreamState = TileConfig;
#else
struct StreamState {
  StreamState() {}
};
#endif

struct Queries {  // of one key head, in order of their tokens
  int64_t count, group, heads, dim;
  int64_t place(int64_t n) const { return (n / group * heads + n % group) * dim; }
};

int64_t tokens_at_once(Heads heads, bool precise);

// queries and out: (count, H, d) from the first of the group's heads on; the first token has position `position`
void stream(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<Bf16> &past);
void stream(const float *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<float> &past);

// The same in AMX tiles; head_dim is a multiple of 32.
void stream_tiled(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count,
                  const Past<Bf16> &past);

struct Running {  // of a query: an integer above all scores so far, and the sum of 2^(score - largest)
  float largest = HIDDEN, total = 0;
};

// Scores -> weights relative to the largest so far, as the element type holds them; `out` is brought to the same scale
template <class Element>
inline void soften(float *scores, int64_t count, Running &running, float *out, int64_t dim) {
  for (int64_t j = count; j % LANES; j++) scores[j] = HIDDEN;
  Floats most = broadcast(running.largest);
  for (int64_t j = 0; j < count; j += LANES) most = larger(load(scores + j), most);
  float now = most[0];
  for (int i = 1; i < LANES; i++) now = now > most[i] ? now : most[i];
  now = integer_above(broadcast(now))[0];
  Floats sums{};
  for (int64_t j = 0; j < count; j += LANES) {
    const Floats s = load(scores + j), weight = power_of_two(s - now);
    const Floats shown = s <= HIDDEN ? Floats{} : weight;
    sums += shown;
    store(scores + j, as_stored<Element>(shown));
  }
  const float shrink = running.largest <= HIDDEN ? 0 : power_of_two(broadcast(running.largest - now))[0];
  if (shrink != 1)
    for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
  running.total = running.total * shrink + sum(sums);
  running.largest = now;
}

// Of `count` keys from position `first` on, those that a query does not see
inline void hide(float *scores, int64_t first, int64_t count, int64_t position, int64_t window) {
  for (int64_t j = 0; j < count; j++)
    if (first + j > position || first + j <= position - window) scores[j] = HIDDEN;
}
