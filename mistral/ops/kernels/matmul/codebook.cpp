// The codebook of 4-bit weights, computed when the library is loaded: with m = scale % 128, entry q is
// +-16 * LEVELS[q] * 2^((m - 127) / 8), minus from scale 128 on, rounded to a whole number and then to bfloat16.
#include "matmul/codebook.h"

#include <cmath>

#include "simd.h"

namespace {

constexpr int LEVELS[16] = {-127, -100, -79, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 82, 105};

Codebook make_codebook() {
  Codebook made;
  for (int scale = 0; scale < 256; scale++) {
    const double size = (scale < 128 ? 16 : -16) * std::exp2((scale % 128 - 127) / 8.0);
    for (int i = 0; i < 32; i++) {
      const Bf16 entry = {bits_bf16(float(std::nearbyint(size * LEVELS[i % 16])))};
      made.bf16[scale][i] = entry.bits;
      made.floats[scale][i % 16] = to_float(&entry);
      made.int16[scale][i] = int16_t(to_float(&entry));
    }
  }
  return made;
}

}  // namespace

const Codebook codebook = make_codebook();
