// The matrix product in float32, for weights of every type: see microkernel.h.
#include "blocks/formats.h"
#include "matmul/microkernel.h"

namespace {

// Weights in blocks are decoded a few rows at a time: only `precise` multiplies them so.
template <class F>
void multiply_decoded(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  constexpr int64_t STEP = 16;
  static thread_local Scratch<float> decoded_buffer;
  float *decoded = decoded_buffer.get(STEP * w.in);
  const int64_t blocks = w.in / F::WEIGHTS;
  for (int64_t n = 0; n < rows; n += STEP) {
    const int64_t count = std::min(STEP, rows - n);
    const uint8_t *from = static_cast<const uint8_t *>(w.data) + (first + n) * blocks * F::BYTES;
    for (int64_t b = 0; b < count * blocks; b++) block_floats<F>(from + b * F::BYTES, decoded + b * F::WEIGHTS);
    const Matrix dense = {decoded, nullptr, FLOAT32, count, w.in};
    multiply_rows_with<FloatMath, DenseWeightRow<float>>(x, dense, 0, count, y + n, stride);
  }
}

}  // namespace

void multiply_rows_float(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  switch (w.type) {
    case FLOAT32:
      return multiply_rows_with<FloatMath, DenseWeightRow<float>>(x, w, first, rows, y, stride);
    case FLOAT16:
      return multiply_rows_with<FloatMath, DenseWeightRow<F16>>(x, w, first, rows, y, stride);
    case BFLOAT16:
      return multiply_rows_with<FloatMath, DenseWeightRow<Bf16>>(x, w, first, rows, y, stride);
    case FLOAT8:
      return multiply_rows_with<FloatMath, WeightRowFloat8>(x, w, first, rows, y, stride);
    default:
      with_format(w.type, [&](auto *format) {
        multiply_decoded<std::remove_pointer_t<decltype(format)>>(x, w, first, rows, y, stride);
      });
  }
}
