#include "matmul/microkernel.h"

#ifdef HAVE_INTEGERS
void integer_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  if (w.type == BITS4) return rows_product<IntegerMath, Row4>(x, w, first, rows, y, stride);
  rows_product<IntegerMath, Row8>(x, w, first, rows, y, stride);
}
#endif
