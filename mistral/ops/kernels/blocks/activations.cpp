// Activations as 8-bit integers, and the choice of the loop that multiplies weights in blocks with them.
#include "blocks/activations.h"

#include "blocks/dot_neon.h"
#include "blocks/formats.h"
#include "blocks/lanes.h"
#include "processor.h"

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

Layout blocks_layout(Type weight, [[maybe_unused]] int64_t tokens) {
  const bool small = block_size(weight) == SMALL_BLOCK;
#ifdef HAVE_LANES
  bool lanes = true;
#ifdef HAVE_AMX
  lanes = tokens <= TILED_TOKENS || !amx_available();
#endif
  if (lanes) return small ? LANES_32 : LANES_256;
#endif
  return small ? BLOCKS_32 : BLOCKS_256;
}

#ifdef HAVE_LANES
// How many tokens lie side by side: such that few places stay empty, and one of the numbers that have a loop
static int lanes_for(int64_t tokens) {
  const int64_t groups = (tokens + MOST_LANES - 1) / MOST_LANES, lanes = (tokens + groups - 1) / groups;
  return int(lanes > 4 ? (lanes + 1) / 2 * 2 : lanes);
}
#endif

Activations empty_blocks(Scratch<float> &buffer, Layout layout, int64_t tokens, int64_t in) {
  const bool small = has_small_blocks(layout);
  const int64_t blocks = in / (small ? SMALL_BLOCK : LARGE_BLOCK);
  int64_t rows, stride, sums;  // rows: of tokens, or of lanes
  int lanes = 0;
#ifdef HAVE_LANES
  if (has_lanes(layout)) {
    lanes = lanes_for(tokens);
    rows = (tokens + lanes - 1) / lanes, stride = in * lanes, sums = blocks * (small ? 1 : LARGE_SUMS) * lanes * 2;
  } else
#endif
  {
    // 64 bytes more than whole blocks, so that the rows do not compete for the same sets of a cache
    stride = (in + 127) / 128 * 128 + 64, sums = small ? (blocks + 1) / 2 * 2 : in / 16;
    rows = std::max(tokens, IN_PLACE_TOKENS);
  }
  const int64_t scale_step = blocks * std::max(lanes, 1);
  float *all = buffer.get(rows * (stride / 4 + scale_step + sums / 2));
  float *scales = all + rows * stride / 4;
  int16_t *sum_data = reinterpret_cast<int16_t *>(scales + rows * scale_step);
  const int64_t full = tokens / std::max(lanes, 1), empty = rows - full;  // beyond those that are full of tokens
  std::fill_n(reinterpret_cast<char *>(all) + full * stride, empty * stride, 0);
  std::fill_n(scales + full * scale_step, empty * scale_step, 0.f);
  std::fill_n(sum_data + full * sums, empty * sums, int16_t(0));
  return {layout, tokens, in, stride, all, scales, scale_step, sum_data, sums, lanes};
}

namespace {

// A block of 8-bit integers and their sums, into its place in the lanes
void pack_into_lanes(const Activations &a, int64_t token, int64_t k, const int8_t *q, const int16_t *sums,
                     float scale) {
  const bool small = has_small_blocks(a.layout);
  const int64_t size = small ? SMALL_BLOCK : LARGE_BLOCK, group = token / a.lanes, lane = token % a.lanes;
  const int64_t lanes = a.lanes, block = k / size;
  char *to = static_cast<char *>(a.data) + group * a.stride + k * lanes + lane * 4;
  for (int64_t i = 0; i < size; i += 4) memcpy(to + i * lanes, q + i, 4);
  a.scales[group * a.scale_step + block * lanes + lane] = scale;
  int16_t *words = a.sums + group * a.sums_step + (block * (small ? 1 : LARGE_SUMS) * lanes + lane) * 2;
  if (small) {
    const int32_t sum = sums[0];
    memcpy(words, &sum, 4);
    return;
  }
  for (int64_t i = 0; i < 8; i++) {
    words[i / 2 * lanes * 2 + i % 2] = int16_t(sums[2 * i] + sums[2 * i + 1]);
    memcpy(words + (4 + i) * lanes * 2, sums + 2 * i, 4);
  }
}

}  // namespace

void pack_blocks(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  const int64_t size = has_small_blocks(a.layout) ? SMALL_BLOCK : LARGE_BLOCK, group = size == SMALL_BLOCK ? 32 : 16;
  for (int64_t t = 0; t < a.tokens; t++)
    for (int64_t i = 0; i < count; i += size) {
      const float *from = x + t * x_stride + i;
      if (a.lanes) {
        int8_t q[LARGE_BLOCK];
        int16_t sums[LARGE_BLOCK / 16];
        const float scale = quantize_block(from, size, q, sums);
        pack_into_lanes(a, t, k + i, q, sums, scale);
      } else {
        a.scales[t * a.scale_step + (k + i) / size] =
            quantize_block(from, size, static_cast<int8_t *>(a.data) + t * a.stride + k + i,
                           a.sums + t * a.sums_step + (k + i) / group);
      }
    }
}

void multiply_rows_blocks(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
#ifdef HAVE_LANES
  if (x.lanes && has_small_blocks(x.layout)) return multiply_small_blocks_lanes(x, w, first, rows, y, stride);
  if (x.lanes) return multiply_large_blocks_lanes(x, w, first, rows, y, stride);
#ifdef HAVE_AMX
  if (x.tokens > TILED_TOKENS && amx_available()) return multiply_blocks_tiles(x, w, first, rows, y, stride);
#endif
#elif defined(HAVE_NEON_DOT)
  if (x.tokens > IN_PLACE_TOKENS) return multiply_blocks_neon(x, w, first, rows, y, stride);
#endif
  multiply_blocks_in_place(x, w, first, rows, y, stride);
}
