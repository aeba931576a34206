// The matrix product in float32, for weights of every type: see microkernel.h.
#include "matmul/microkernel.h"

void multiply_rows_float(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  with_weight_row(w.type, [&](auto *row) {
    multiply_rows_with<FloatMath, std::remove_pointer_t<decltype(row)>>(x, w, first, rows, y, stride);
  });
}
