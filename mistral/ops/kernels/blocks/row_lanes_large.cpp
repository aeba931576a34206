// Weights in large blocks with tokens: see row_lanes.h.
#include "blocks/row_lanes.h"

#ifdef HAVE_LANES
void multiply_large_blocks_lanes(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y,
                                 int64_t stride) {
  with_format(w.type, [&](auto *format) {
    using F = std::remove_pointer_t<decltype(format)>;
    if constexpr (F::WEIGHTS != SMALL_BLOCK) multiply_lanes<F>(x, w, first, rows, y, stride);
  });
}
#endif
