// Attention over the rolling cache and a step's own keys, as a stream: a softmax that is corrected as larger scores
// come (Milakov and Gimelshein, arXiv:1805.02867), block of keys by block of keys, so no matrix of all scores is made.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parts.h"
#include "stream.h"
#include "vector.h"

namespace {

// x (T, heads, d), each interleaved pair turned by its angle, as bfloat16
void turn(const float *x, const float *cos, const float *sin, uint16_t *y, int64_t tokens, int64_t heads, int64_t dim) {
#pragma omp parallel for schedule(static) if (tokens > 4)
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < heads; h++) {
      const float *from = x + (t * heads + h) * dim, *c = cos + t * dim, *s = sin + t * dim;
      float turned[LANES];
      for (int64_t i = 0; i < dim; i += LANES) {
        const int64_t left = std::min<int64_t>(LANES, dim - i);
        for (int64_t j = 0; j < left; j += 2) {
          turned[j] = from[i + j] * c[i + j] - from[i + j + 1] * s[i + j];
          turned[j + 1] = from[i + j + 1] * c[i + j] + from[i + j] * s[i + j];
        }
        uint16_t rounded[LANES];
        store_bf16(rounded, load(turned));
        memcpy(y + (t * heads + h) * dim + i, rounded, left * 2);
      }
    }
}

void narrow_all(const float *x, uint16_t *y, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store_bf16(y + i, load(x + i));
  for (; i < size; i++) y[i] = bits_bf16(x[i]);
}

// The last slots' worth of new tokens into the cache: position p goes to slot p % slots
void write(const Row &row, const uint16_t *keys, const uint16_t *values, Heads heads) {
  const int64_t dim = heads.head_dim;
  for (int64_t t = std::max<int64_t>(0, row.tokens - row.slots); t < row.tokens; t++) {
    const int64_t slot = (row.before + t) % row.slots;
    for (int64_t h = 0; h < heads.kv_heads; h++) {
      const int64_t to = (h * row.slots + slot) * dim, from = (t * heads.kv_heads + h) * dim;
      memcpy(row.keys + to, keys + from, dim * 2);
      memcpy(row.values + to, values + from, dim * 2);
    }
  }
}

}  // namespace

// Runs of keys of one head in order of position: the ring from its oldest slot, from slot 0, then the new ones
int segments_of(const Row &row, const uint16_t *keys, const uint16_t *values, Heads heads, int64_t head,
                Segment *found) {
  const int64_t dim = heads.head_dim, newest = row.slots ? row.before % row.slots : 0;
  int count = 0;
  const auto ring = [&](int64_t slot, int64_t position, int64_t length) {
    const int64_t at = (head * row.slots + slot) * dim;
    if (length) found[count++] = {row.keys + at, row.values + at, dim, position, length};
  };
  if (row.slots && row.before >= row.slots) ring(newest, row.before - row.slots, row.slots - newest);
  if (row.slots) ring(0, row.before - newest, newest);
  found[count++] = {keys + head * dim, values + head * dim, heads.kv_heads * dim, row.before, row.tokens};
  return count;
}

void attention(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
               Heads heads, const Row *rows, int64_t n_rows) {
  const AllThreads threads;
  static thread_local Scratch<uint16_t> kept_queries, kept_keys, kept_values;
  static thread_local std::vector<Task> tasks;
  int64_t tokens = 0;
  const int64_t dim = heads.head_dim, group = heads.heads / heads.kv_heads;
  for (int64_t r = 0; r < n_rows; r++) tokens += rows[r].tokens;
  uint16_t *queries = kept_queries.get(tokens * heads.heads * dim);
  uint16_t *keys = kept_keys.get(tokens * heads.kv_heads * dim);
  uint16_t *values = kept_values.get(tokens * heads.kv_heads * dim);
  turn(q, cos, sin, queries, tokens, heads.heads, dim);
  turn(k, cos, sin, keys, tokens, heads.kv_heads, dim);
  narrow_all(v, values, tokens * heads.kv_heads * dim);
  tasks.clear();
  for (int64_t r = 0, start = 0; r < n_rows; start += rows[r++].tokens) {
    const int64_t block = tokens_at_once(heads);
    for (int64_t t = (rows[r].tokens - 1) / block * block; t >= 0; t -= block)  // the longest first
      for (int64_t h = 0; h < heads.kv_heads; h++)
        tasks.push_back({r, start, t, std::min(block, rows[r].tokens - t), h});
  }
  const int64_t kv_stride = heads.kv_heads * dim, n_tasks = tasks.size();
  const Task *const all = tasks.data();
#pragma omp parallel
  {
    const StreamState state;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n_tasks; i++) {
      const Task task = all[i];
      const Row &row = rows[task.row];
      Segment found[3];
      const int n = segments_of(row, keys + task.start * kv_stride, values + task.start * kv_stride, heads, task.head,
                                found);
      const int64_t at = ((task.start + task.first) * heads.heads + task.head * group) * dim;
      stream(queries + at, out + at, heads, row.before + task.first, task.count, found, n);
    }
  }
  for (int64_t r = 0, start = 0; r < n_rows; start += rows[r++].tokens)
    if (rows[r].slots) write(rows[r], keys + start * kv_stride, values + start * kv_stride, heads);
}
