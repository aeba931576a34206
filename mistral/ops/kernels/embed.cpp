// Token embedding: rows `ids` (T,) of a table (V, D) -> y (T, D), widened to float32.
#include "blocks/formats.h"
#include "operators.h"
#include "simd.h"

namespace {

template <class Element>
void embed_as(const Element *table, int64_t dim, const int64_t *ids, float *y, int64_t tokens) {
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < dim; i++) y[t * dim + i] = to_float(table + ids[t] * dim + i);
}

template <class F>
void embed_blocks(const uint8_t *table, int64_t dim, const int64_t *ids, float *y, int64_t tokens) {
  const int64_t blocks = dim / F::WEIGHTS;
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t b = 0; b < blocks; b++)
      block_floats<F>(table + (ids[t] * blocks + b) * F::BYTES, y + t * dim + b * F::WEIGHTS);
}

}  // namespace

void embed(Matrix table, const int64_t *ids, float *y, int64_t tokens) {
  if (table.type == BFLOAT16) return embed_as(static_cast<const Bf16 *>(table.data), table.in, ids, y, tokens);
  if (table.type == FLOAT16) return embed_as(static_cast<const F16 *>(table.data), table.in, ids, y, tokens);
  if (is_blocks(table.type))
    return with_format(table.type, [&](auto *format) {
      using F = std::remove_pointer_t<decltype(format)>;
      embed_blocks<F>(static_cast<const uint8_t *>(table.data), table.in, ids, y, tokens);
    });
  embed_as(static_cast<const float *>(table.data), table.in, ids, y, tokens);
}
