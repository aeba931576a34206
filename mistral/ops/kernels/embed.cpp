// Token embedding: rows `ids` (T,) of a table (V, D) -> y (T, D), widened to float32.
#include "operators.h"
#include "simd.h"

namespace {

template <class Element>
void embed_as(const Element *table, int64_t dim, const int64_t *ids, float *y, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < dim; i++) y[t * dim + i] = to_float(table + ids[t] * dim + i);
}

}  // namespace

void embed(Matrix table, const int64_t *ids, float *y, int64_t tokens) {
  if (table.type == BFLOAT16) return embed_as(static_cast<const Bf16 *>(table.data), table.in, ids, y, tokens);
  if (table.type == FLOAT16) return embed_as(static_cast<const F16 *>(table.data), table.in, ids, y, tokens);
  embed_as(static_cast<const float *>(table.data), table.in, ids, y, tokens);
}
