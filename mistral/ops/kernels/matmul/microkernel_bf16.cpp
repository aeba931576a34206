#include "matmul/microkernel.h"

#ifdef HAVE_PAIRS
void pair_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  rows_product<PairMath, DenseRow<Bf16>>(x, w, first, rows, y, stride);
}
#endif

void split_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  rows_product<SplitMath, DenseRow<Bf16>>(x, w, first, rows, y, stride);
}
