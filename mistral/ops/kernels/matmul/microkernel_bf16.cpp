// The matrix product of bfloat16 or 8-bit float weights and bfloat16 activations, with sums in float32, by vdpbf16ps or
// by float32 products that give the same bits: see microkernel.h.
#include "matmul/microkernel.h"

#ifdef HAVE_BF16
void multiply_rows_pairs(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (w.type == FLOAT8) return multiply_rows_with<PairMath, WeightRowFloat8>(x, w, first, rows, y, stride);
  multiply_rows_with<PairMath, DenseWeightRow<Bf16>>(x, w, first, rows, y, stride);
}
#endif

void multiply_rows_odd_even(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (w.type == FLOAT8) return multiply_rows_with<OddEvenMath, WeightRowFloat8>(x, w, first, rows, y, stride);
  multiply_rows_with<OddEvenMath, DenseWeightRow<Bf16>>(x, w, first, rows, y, stride);
}
