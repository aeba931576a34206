// Attention over the rolling cache and a step's own keys, as a stream: a softmax that is corrected as larger scores
// come (Milakov and Gimelshein, arXiv:1805.02867), block of keys by block of keys, so no matrix of all scores is made.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "operators.h"
#include "attention/online_softmax.h"
#include "simd.h"

namespace {

// x (T, heads, d), each interleaved pair turned by its angle
template <class Element>
void turn(const float *x, const float *cos, const float *sin, Element *y, int64_t tokens, int64_t heads, int64_t dim) {
#pragma omp parallel for schedule(static) if (tokens > 4)
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < heads; h++) {
      const float *from = x + (t * heads + h) * dim, *c = cos + t * dim, *s = sin + t * dim;
      float turned[LANES] = {};
      for (int64_t i = 0; i < dim; i += LANES) {
        const int64_t left = std::min<int64_t>(LANES, dim - i);
        for (int64_t j = 0; j < left; j += 2) {
          turned[j] = from[i + j] * c[i + j] - from[i + j + 1] * s[i + j];
          turned[j + 1] = from[i + j + 1] * c[i + j] + from[i + j] * s[i + j];
        }
        Element stored[LANES];
        store_as(stored, load(turned));
        memcpy(y + (t * heads + h) * dim + i, stored, left * sizeof(Element));
      }
    }
}

template <class Element>
void keep(const float *x, Element *y, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store_as(y + i, load(x + i));
  float rest[LANES] = {};
  Element stored[LANES];
  memcpy(rest, x + i, (size - i) * sizeof(float));
  store_as(stored, load(rest));
  memcpy(y + i, stored, (size - i) * sizeof(Element));
}

// The last slots' worth of new tokens into the cache: position p goes to slot p % slots
template <class Element>
void write(const Row &row, const Element *keys, const Element *values, Heads heads) {
  const int64_t dim = heads.head_dim, size = dim * sizeof(Element);
  for (int64_t t = std::max<int64_t>(0, row.tokens - row.slots); t < row.tokens; t++) {
    const int64_t slot = (row.before + t) % row.slots;
    for (int64_t h = 0; h < heads.kv_heads; h++) {
      const int64_t to = (h * row.slots + slot) * dim, from = (t * heads.kv_heads + h) * dim;
      memcpy(static_cast<Element *>(row.keys) + to, keys + from, size);
      memcpy(static_cast<Element *>(row.values) + to, values + from, size);
    }
  }
}

template <class Element>
void attend(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out, Heads heads,
            const Row *rows, int64_t n_rows) {
  static thread_local Scratch<Element> kept_queries, kept_keys, kept_values;
  static thread_local std::vector<Task> tasks;
  int64_t tokens = 0;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  for (int64_t r = 0; r < n_rows; r++) tokens += rows[r].tokens;
  Element *queries = kept_queries.get(tokens * heads.heads * dim);
  Element *keys = kept_keys.get(tokens * heads.kv_heads * dim);
  Element *values = kept_values.get(tokens * heads.kv_heads * dim);
  turn(q, cos, sin, queries, tokens, heads.heads, dim);
  turn(k, cos, sin, keys, tokens, heads.kv_heads, dim);
  keep(v, values, tokens * heads.kv_heads * dim);
  tasks.clear();
  const int64_t block = tokens_at_once(heads, sizeof(Element) == 4);
  for (int64_t r = 0, start = 0; r < n_rows; start += rows[r++].tokens)
    for (int64_t t = (rows[r].tokens - 1) / block * block; t >= 0; t -= block)  // the longest first
      for (int64_t h = 0; h < heads.kv_heads; h++)
        tasks.push_back({r, start, t, std::min(block, rows[r].tokens - t), h});
  const int64_t kv_stride = heads.kv_heads * dim, n_tasks = tasks.size();
  const Task *const all = tasks.data();
#pragma omp parallel
  {
    const StreamState state;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tasks; i++) {
      const Task task = all[i];
      const Row &row = rows[task.row];
      const int64_t at = ((task.start + task.first) * heads.heads + task.head * group) * dim;
      const int64_t fresh = task.start * kv_stride + task.head * dim, ring = task.head * row.slots * dim;
      const Past<Element> past = {static_cast<const Element *>(row.keys) + ring,
                                  static_cast<const Element *>(row.values) + ring,
                                  keys + fresh,
                                  values + fresh,
                                  row.slots,
                                  row.before,
                                  kv_stride,
                                  dim};
      stream(queries + at, out + at, heads, row.before + task.first, task.count, past);
    }
  }
  for (int64_t r = 0, start = 0; r < n_rows; start += rows[r++].tokens)
    if (rows[r].slots) write(rows[r], keys + start * kv_stride, values + start * kv_stride, heads);
}

}  // namespace

void attention(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
               Heads heads, const Row *rows, int64_t n_rows, bool precise) {
  const AllThreads threads;
  if (precise) return attend<float>(q, k, v, cos, sin, out, heads, rows, n_rows);
  attend<Bf16>(q, k, v, cos, sin, out, heads, rows, n_rows);
}
