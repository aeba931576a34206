// Attention of the queries of one key head by online softmax (Milakov and Gimelshein, arXiv:1805.02867; for attention
// FlashAttention, arXiv:2205.14135): out = softmax(scale * q K^T) V, with keys and values taken block by block. Of each
// query the largest score so far, the sum of weights and the weighted sum of values are kept; where a block has a
// larger score, these are scaled down. No matrix of all scores exists.
//
// Blocks begin at multiples of their size, whatever the tokens of a step. So a query's sums are formed in one order,
// and its result is the same bit for bit in any chunk. Scores are taken to base 2, and weights are relative to an
// integer not below the largest score: a larger score that comes later scales them by a power of two, which is exact,
// and they round to bfloat16 as they would have in any other order.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "simd.h"
#ifdef HAVE_AMX
#include "amx.h"
#endif

constexpr float MASKED = -1e30f;  // score of a key that a query does not see
constexpr float LOG2_E = 1.44269504f;

// Keys and values of one key head of a sequence: those before the step in the rolling cache (slots, d), those of the
// step among the new ones (tokens, KV, d)
template <class Element>  // Bf16, or float where nothing is rounded
struct KeyValues {
  const Element *cached_keys, *cached_values, *new_keys, *new_values;
  int64_t slots, before, stride, dim;  // position `before` is the first new one; new ones are `stride` elements apart

  // Addresses of the keys and values at positions [base, base + count); `zeros` for those outside [from, to)
  void locate(int64_t base, int64_t count, int64_t from, int64_t to, const Element *zeros, const Element **keys,
              const Element **values) const {
    int64_t slot = slots ? std::max(base, from) % slots : 0;
    for (int64_t j = 0; j < count; j++) {
      const int64_t p = base + j;
      keys[j] = values[j] = zeros;
      if (p < from || p >= to) continue;
      const int64_t at = p < before ? slot * dim : (p - before) * stride;
      keys[j] = (p < before ? cached_keys : new_keys) + at;
      values[j] = (p < before ? cached_values : new_values) + at;
      if (++slot == slots) slot = 0;
    }
  }
};

// What a thread holds while it runs online_softmax_attention: configured AMX tiles, where there are any
#if defined(HAVE_AMX) && !defined(EMULATE_AMX)
using AttentionThreadState = TileConfig;
#else
struct AttentionThreadState {
  AttentionThreadState() {}
};
#endif

// Queries of one key head, in order of their tokens: `group` heads of each, out of `heads`
struct Queries {
  int64_t count, group, heads, dim;
  int64_t offset(int64_t n) const { return (n / group * heads + n % group) * dim; }  // of query n, in elements
};

// The number of tokens in a call: with their `group` heads 256 queries, or 512 with tiles, share each packed block of
// keys
int64_t tokens_at_once(Heads heads, bool precise);

// queries and out (count, H, d), from the first of the group's heads on; the first token has position `position`
void online_softmax_attention(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count,
                              const KeyValues<Bf16> &key_values);
void online_softmax_attention(const float *queries, float *out, Heads heads, int64_t position, int64_t count,
                              const KeyValues<float> &key_values);

// The same in AMX tiles; head_dim is a multiple of 32
void online_softmax_attention_amx(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count,
                                  const KeyValues<Bf16> &key_values);
