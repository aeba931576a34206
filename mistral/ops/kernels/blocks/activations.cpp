// Activations as 8-bit integers, and the choice of the loop that multiplies weights in blocks with them.
#include "blocks/activations.h"

#include "blocks/formats.h"
#include "blocks/panel.h"

float quantize_block(const float *x, int64_t size, int8_t *to, int16_t *sums) {
  uint32_t largest_bits = 0;  // of the magnitudes: their bits are ordered as they are, and NaN comes last
  for (int64_t i = 0; i < size; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    largest_bits = std::max(largest_bits, bits & 0x7fffffff);
  }
  float largest;
  memcpy(&largest, &largest_bits, 4);
  const bool finite = largest_bits < 0x7f800000;
  const float by = finite && largest > 1e-30f ? INT8_LARGEST / largest : 0;
  for (int64_t i = 0; i < size; i++) {
    const float rounded = fused(finite ? x[i] : 0, by, ROUNDER);
    int32_t bits;
    memcpy(&bits, &rounded, 4);
    to[i] = int8_t(bits - 0x4b400000);
  }
  const int64_t group = size == SMALL_BLOCK ? 32 : 16;
  for (int64_t g = 0; g < size / group; g++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < group; i++) sum += to[g * group + i];
    sums[g] = int16_t(sum);
  }
  return finite ? largest / INT8_LARGEST : __builtin_nanf("");
}

void multiply_rows_blocks(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
#ifdef HAVE_PANELS
  // Up to this number of tokens, decoding rows where they lie for every four tokens is faster than packing them
  const int64_t few = block_size(w.type) == LARGE_BLOCK && w.type != BLOCKS_IQ4_XS ? 8 : 4;
  if (x.tokens > few)
    return with_format(w.type, [&](auto *format) {
      if constexpr (HAS_BYTE_PANEL<std::remove_pointer_t<decltype(format)>>)
        multiply_blocks_bytes(x, w, first, rows, y, stride);
      else
        multiply_blocks_words(x, w, first, rows, y, stride);
    });
#endif
  multiply_blocks_in_place(x, w, first, rows, y, stride);
}
