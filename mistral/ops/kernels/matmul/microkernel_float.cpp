#include "matmul/microkernel.h"

void float_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_rows(w.type, [&](auto *row) {
    rows_product<FloatMath, std::remove_pointer_t<decltype(row)>>(x, w, first, rows, y, stride);
  });
}
