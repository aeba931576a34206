// Products of AMX tiles: A (16, 32) bfloat16 times B (32, 16) bfloat16, added to sums (16, 16) float32; or of bytes with
// a sign, A (16, 64) times B (64, 16), added to sums of 32-bit integers (blocks/panel_tiles.cpp).
//
// A tile has 16 lines of 64 bytes. A line of A is 32 elements of a row; line k of B has elements 2 k and 2 k + 1 of
// each of its 16 columns side by side. The eight tile registers are used as a block of 2 x 2 products: 4 and 5 hold two
// tiles A ("weights"), 6 and 7 two tiles B ("activations"), and 0 to 3 the sums of 4 x 6, 5 x 6, 4 x 7 and 5 x 7.
//
// Included only where HAVE_AMX; with -DEMULATE_AMX the registers are memory and the instructions are C++.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "simd.h"
#include "transpose.h"

constexpr int64_t TILE = 512;  // bfloat16 elements in a tile

inline int64_t tiles_for(int64_t tokens) { return (tokens + 15) / 16; }  // tiles B for so many columns
inline int64_t depth_for(int64_t in) { return (in + 31) / 32; }          // tiles along a row of so many elements

// The lines of each tile register, and bytes of a line
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// For products of `depth` bytes: 4 is a tile A, 5 and 6 are tiles B, 0 to 3 sums
inline TileShapes shapes_for_bytes(int depth) {
  TileShapes shapes;
  shapes.bytes[4] = uint16_t(depth);
  shapes.lines[5] = shapes.lines[6] = uint8_t(depth / 4);
  return shapes;
}

#ifdef EMULATE_AMX
inline thread_local uint8_t emulated[8][16][64];
inline thread_local TileShapes emulated_shapes;

inline bool request_tiles() { return true; }
struct TileConfig {
  explicit TileConfig(const TileShapes &shapes = {}) { emulated_shapes = shapes; }
  ~TileConfig() { memset(emulated, 0xff, sizeof emulated); }  // NaN, so that a test sees reads of released tiles
};
inline void compiler_barrier() {}

inline void tile_zero(int tile) { memset(emulated[tile], 0, sizeof emulated[tile]); }
inline void tile_load(int tile, const void *from, int64_t stride) {
  tile_zero(tile);
  for (int i = 0; i < emulated_shapes.lines[tile]; i++)
    memcpy(emulated[tile][i], static_cast<const char *>(from) + i * stride, emulated_shapes.bytes[tile]);
}
inline void tile_store(int tile, void *to, int64_t stride) {
  for (int i = 0; i < 16; i++) memcpy(static_cast<char *>(to) + i * stride, emulated[tile][i], 64);
}
inline void tile_multiply(int sums, int a, int b) {
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < 16; k++) {
      int32_t pair;
      memcpy(&pair, emulated[a][m] + 4 * k, 4);
      const __m512i line = _mm512_loadu_si512(emulated[b][k]);
      const __m512 sum = _mm512_loadu_ps(emulated[sums][m]);
      _mm512_storeu_ps(emulated[sums][m], _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)line));
    }
}
inline void tile_multiply_bytes(int sums, int a, int b) {
  if (emulated_shapes.bytes[a] != 4 * emulated_shapes.lines[b]) __builtin_trap();  // as the processor does
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < emulated_shapes.lines[b]; k++) {
      int8_t four[4], line[64];
      int32_t sum[16];
      memcpy(four, emulated[a][m] + 4 * k, 4);
      memcpy(line, emulated[b][k], 64);
      memcpy(sum, emulated[sums][m], 64);
      for (int n = 0; n < 16; n++)
        for (int i = 0; i < 4; i++) sum[n] += four[i] * line[4 * n + i];
      memcpy(emulated[sums][m], sum, 64);
    }
}
#else
// Linux lets a process use the tile registers only after it has asked for them.
inline bool request_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

// While one lives, this thread's tiles have these shapes; afterwards they are released. The instruction is
// written out because GCC 12 believes that _tile_loadconfig reads 8 bytes, and drops the stores of the other 56.
struct TileConfig {
  explicit TileConfig(const TileShapes &shapes = {}) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
  ~TileConfig() { _tile_release(); }
  TileConfig(const TileConfig &) = delete;
};

// Keeps stores before the tile loads that follow: GCC does not know that a tile load reads memory.
inline void compiler_barrier() { asm volatile("" ::: "memory"); }

#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, a, b) _tile_dpbf16ps(sums, a, b)
#define tile_multiply_bytes(sums, a, b) _tile_dpbssd(sums, a, b)
#endif

inline void zero_sums() {
  compiler_barrier();
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
}

inline void load_sums(const float *a, const float *b, const float *c, const float *d) {
  compiler_barrier();
  tile_load(0, a, 64);
  tile_load(1, b, 64);
  tile_load(2, c, 64);
  tile_load(3, d, 64);
}

inline void store_sums(float *a, float *b, float *c, float *d) {
  tile_store(0, a, 64);
  tile_store(1, b, 64);
  tile_store(2, c, 64);
  tile_store(3, d, 64);
}

// Loads two tiles A, whose lines are `stride` bytes apart
inline void load_weights(const uint16_t *a, const uint16_t *b, int64_t stride) {
  tile_load(4, a, stride);
  tile_load(5, b, stride);
}

// Adds the four products of the two loaded tiles A with the tiles B at x and y
inline void multiply_2x2(const uint16_t *x, const uint16_t *y) {
  tile_load(6, x, 64);
  tile_load(7, y, 64);
  tile_multiply(0, 4, 6);
  tile_multiply(1, 5, 6);
  tile_multiply(2, 4, 7);
  tile_multiply(3, 5, 7);
}

// 32 floats -> 32 bfloat16
inline __m512i pack_bf16(const float *x) {
  const Words low = round_words(load(x)) >> 16, high = round_words(load(x + 16)) >> 16;
  const __m512i halves = _mm512_castsi256_si512(_mm512_cvtepi32_epi16((__m512i)low));
  return _mm512_inserti64x4(halves, _mm512_cvtepi32_epi16((__m512i)high), 1);
}

// Lane i -> a word of two bfloat16, first[i] in the lower half and second[i] in the upper
inline __m512i interleave(Floats first, Floats second) {
  return (__m512i)((round_words(first) >> 16) | (round_words(second) & 0xffff0000));
}

// sums (16 weight rows, 16 tokens) -> y[token * stride + row] = sum * factors[row], for the first `tokens` and `rows`
inline void store_transposed(const float *sums, const float *factors, float *y, int64_t stride, int64_t tokens,
                             int64_t rows) {
  __m512i lines[16];
  for (int i = 0; i < 16; i++) lines[i] = _mm512_load_si512(sums + 16 * i);
  transpose(lines);
  const Floats by = load(factors);
  for (int64_t t = 0; t < tokens; t++)
    _mm512_mask_storeu_ps(y + t * stride, uint16_t((1u << rows) - 1), (__m512)((Floats)lines[t] * by));
}
