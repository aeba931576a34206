// The table of mistral/quantized.py.
#include <cmath>

#include "matmul/weight_rows.h"

namespace {

constexpr int LEVELS[16] = {-127, -100, -79, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 82, 105};

Levels make() {
  Levels made;
  for (int scale = 0; scale < 256; scale++) {
    const double size = (scale < 128 ? 16 : -16) * std::exp2((scale % 128 - 127) / 8.0);
    for (int i = 0; i < 32; i++) {
      const Bf16 half = {bits_bf16(float(std::nearbyint(size * LEVELS[i % 16])))};
      made.halves[scale][i] = half.bits;
      made.floats[scale][i % 16] = one(&half);
      made.shorts[scale][i] = int16_t(one(&half));
    }
  }
  return made;
}

}  // namespace

const Levels levels = make();
