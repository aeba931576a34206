// Embedding, normalisation and sums.
#include <cmath>

#include "kernels.h"
#include "operators.h"
#include "simd.h"

template <class W>
static void embed_rows(const W *table, int64_t dim, const int64_t *ids, float *y, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < dim; i++) y[t * dim + i] = one(table + ids[t] * dim + i);
}

void embed(Matrix table, const int64_t *ids, float *y, int64_t tokens) {
  if (table.type == BFLOAT16) return embed_rows(static_cast<const Bf16 *>(table.data), table.in, ids, y, tokens);
  if (table.type == FLOAT16) return embed_rows(static_cast<const F16 *>(table.data), table.in, ids, y, tokens);
  embed_rows(static_cast<const float *>(table.data), table.in, ids, y, tokens);
}

void rms_norm(const float *x, Norm norm, float *y, int64_t tokens) {
  const AllThreads threads;
  const int64_t dim = norm.weight.in, zero = 0;
  static thread_local Scratch<float> kept;
  float *wide = kept.get(dim);
  embed(norm.weight, &zero, wide, 1);
#pragma omp parallel for schedule(static) if (tokens > 4)
  for (int64_t t = 0; t < tokens; t++) {
    const float *row = x + t * dim;
    Floats squares{};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) squares += load(row + i) * load(row + i);
    float total = sum(squares);
    for (; i < dim; i++) total += row[i] * row[i];
    const float scale = 1 / std::sqrt(total / dim + norm.eps);
    for (i = 0; i < dim; i++) y[t * dim + i] = row[i] * scale * wide[i];
  }
}

void add(const float *x, float *y, int64_t size) {
  const AllThreads threads;
#pragma omp parallel for schedule(static) if (size > 65536)
  for (int64_t i = 0; i < size; i++) y[i] += x[i];
}
