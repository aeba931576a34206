// Attention of a step over each sequence's rolling cache and its new keys: q (T, H, d), k and v (T, KV, d) ->
// out (T, H, d). RoPE is applied to q and k (RoFormer, arXiv:2104.09864), the softmax is computed online
// (online_softmax.h), and then the new keys and values are written to the caches. Queries see the cache as it was
// before the step, so a chunk may overwrite slots that its own first tokens still attend to.
#include <algorithm>
#include <vector>

#include "all_threads.h"
#include "attention/online_softmax.h"
#include "operators.h"
#include "scratch.h"
#include "simd.h"

namespace {

// RoPE: x (T, heads, d) -> y, elements 2 i and 2 i + 1 of a head rotated by the angle whose cos and sin (T, d) are
// there, and then multiplied by the token's factor (T,), where there are factors
template <class Element>
void rope(const float *x, Rotation rotation, const float *factors, Element *y, int64_t tokens, int64_t heads,
          int64_t dim) {
#pragma omp parallel for schedule(static) if (tokens > 4)
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < heads; h++) {
      const float *from = x + (t * heads + h) * dim, *c = rotation.cos + t * dim, *s = rotation.sin + t * dim;
      const Floats factor = broadcast(factors ? factors[t] : 1.f);
      float rotated[LANES] = {};
      for (int64_t i = 0; i < dim; i += LANES) {
        const int64_t left = std::min<int64_t>(LANES, dim - i);
        for (int64_t j = 0; j < left; j += 2) {
          rotated[j] = from[i + j] * c[i + j] - from[i + j + 1] * s[i + j];
          rotated[j + 1] = from[i + j + 1] * c[i + j] + from[i + j] * s[i + j];
        }
        Element rounded[LANES];
        store_rounded(rounded, load(rotated) * factor);
        memcpy(y + (t * heads + h) * dim + i, rounded, left * sizeof(Element));
      }
    }
}

// x (size,) -> y, rounded to the element type
template <class Element>
void store_all(const float *x, Element *y, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store_rounded(y + i, load(x + i));
  float rest[LANES] = {};
  Element rounded[LANES];
  memcpy(rest, x + i, (size - i) * sizeof(float));
  store_rounded(rounded, load(rest));
  memcpy(y + i, rounded, (size - i) * sizeof(Element));
}

// New keys and values (tokens, KV, d) -> the cache (KV, slots, d): position p goes to slot p % slots. Of more tokens
// than slots only the last are written.
template <class Element>
void write_cache(const Sequence &sequence, const Element *keys, const Element *values, Heads heads) {
  const int64_t dim = heads.head_dim, size = dim * sizeof(Element);
  for (int64_t t = std::max<int64_t>(0, sequence.tokens - sequence.slots); t < sequence.tokens; t++) {
    const int64_t slot = (sequence.before + t) % sequence.slots;
    for (int64_t h = 0; h < heads.kv_heads; h++) {
      const int64_t to = (h * sequence.slots + slot) * dim, from = (t * heads.kv_heads + h) * dim;
      memcpy(static_cast<Element *>(sequence.keys) + to, keys + from, size);
      memcpy(static_cast<Element *>(sequence.values) + to, values + from, size);
    }
  }
}

// Tokens [first, first + count) of a sequence whose tokens start at `start` in the step, for one key head
struct Task {
  int64_t sequence, start, first, count, kv_head;
};

// Every block of tokens of every sequence, for every key head. Of a sequence the last block comes first: it has the
// most keys, and threads that take the longest tasks first finish together.
void list_tasks(std::vector<Task> &tasks, const Sequence *sequences, int64_t n_sequences, int64_t kv_heads,
                int64_t block) {
  tasks.clear();
  for (int64_t s = 0, start = 0; s < n_sequences; start += sequences[s++].tokens)
    for (int64_t t = (sequences[s].tokens - 1) / block * block; t >= 0; t -= block)
      for (int64_t h = 0; h < kv_heads; h++)
        tasks.push_back({s, start, t, std::min(block, sequences[s].tokens - t), h});
}

// queries and out (T, H, d), keys and values (T, KV, d) of the step
template <class Element>
void run_task(const Task &task, const Sequence &sequence, const Element *queries, const Element *keys,
              const Element *values, float *out, Heads heads) {
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads, kv_stride = heads.kv_heads * dim;
  const int64_t at = ((task.start + task.first) * heads.heads + task.kv_head * group) * dim;
  const int64_t fresh = task.start * kv_stride + task.kv_head * dim, cached = task.kv_head * sequence.slots * dim;
  const KeyValues<Element> key_values = {static_cast<const Element *>(sequence.keys) + cached,
                                         static_cast<const Element *>(sequence.values) + cached,
                                         keys + fresh,
                                         values + fresh,
                                         sequence.slots,
                                         sequence.before,
                                         kv_stride,
                                         dim};
  online_softmax_attention(queries + at, out + at, heads, sequence.before + task.first, task.count, key_values);
}

// Attention with queries, keys and values of this element type: Bf16, or float where nothing is rounded
template <class Element>
void attend(const float *q, const float *k, const float *v, Rotation rotation, float *out, Heads heads,
            const Sequence *sequences, int64_t n_sequences) {
  static thread_local Scratch<Element> query_buffer, key_buffer, value_buffer;
  static thread_local std::vector<Task> tasks;
  int64_t tokens = 0;
  const int64_t dim = heads.head_dim, kv_stride = heads.kv_heads * dim;
  for (int64_t s = 0; s < n_sequences; s++) tokens += sequences[s].tokens;
  Element *queries = query_buffer.get(tokens * heads.heads * dim);
  Element *keys = key_buffer.get(tokens * kv_stride);
  Element *values = value_buffer.get(tokens * kv_stride);
  rope(q, rotation, rotation.query_factors, queries, tokens, heads.heads, dim);
  rope(k, rotation, nullptr, keys, tokens, heads.kv_heads, dim);
  store_all(v, values, tokens * kv_stride);
  list_tasks(tasks, sequences, n_sequences, heads.kv_heads, tokens_at_once(heads, sizeof(Element) == 4));
  const Task *const all = tasks.data();
  const int64_t n_tasks = tasks.size();
#pragma omp parallel
  {
    const AttentionThreadState state;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tasks; i++)
      run_task(all[i], sequences[all[i].sequence], queries, keys, values, out, heads);
  }
  for (int64_t s = 0, start = 0; s < n_sequences; start += sequences[s++].tokens)
    if (sequences[s].slots) write_cache(sequences[s], keys + start * kv_stride, values + start * kv_stride, heads);
}

}  // namespace

void attention(const float *q, const float *k, const float *v, Rotation rotation, float *out, Heads heads,
               const Sequence *sequences, int64_t n_sequences, bool precise) {
  const AllThreads threads;
  if (precise) return attend<float>(q, k, v, rotation, out, heads, sequences, n_sequences);
  attend<Bf16>(q, k, v, rotation, out, heads, sequences, n_sequences);
}
