#include "products.h"

#ifdef HAVE_PAIRS
void pair_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (w.type == BITS4) return rows_product<PairMath, Row4>(x, w, first, rows, y, stride);
  if (w.type == BITS8) return rows_product<PairMath, Row8>(x, w, first, rows, y, stride);
  rows_product<PairMath, DenseRow<Bf16>>(x, w, first, rows, y, stride);
}
#endif
