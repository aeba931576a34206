// The matrix product of 8- and 4-bit weights, as 16-bit integers, with activations of 14 bits: see microkernel.h.
#include "matmul/microkernel.h"

#ifdef HAVE_INT16
void multiply_rows_int16(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (w.type == BITS4) return multiply_rows_with<Int16Math, WeightRow4>(x, w, first, rows, y, stride);
  multiply_rows_with<Int16Math, WeightRow8>(x, w, first, rows, y, stride);
}
#endif
