// The eight tile registers and how they are used here: 0 to 3 sums, 4 and 5 weights, 6 and 7 activations.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vector.h"

constexpr int64_t TILE = 512;  // bfloat16 elements: 16 lines of 64 bytes

inline int64_t tiles_for(int64_t tokens) { return (tokens + 15) / 16; }
inline int64_t depth_for(int64_t in) { return (in + 31) / 32; }

// Linux gives a process tile state only where it asks.
inline bool request_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

// All tiles 16 lines of 64 bytes while it lives. GCC 12 believes that _tile_loadconfig reads 8 bytes and drops the
// stores of the other 56, hence the instruction itself.
struct TileConfig {
  struct alignas(64) Layout {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  TileConfig() {
    const Layout layout;
    asm volatile("ldtilecfg %0" ::"m"(layout));
  }
  ~TileConfig() { _tile_release(); }
  TileConfig(const TileConfig &) = delete;
};

// GCC does not know that a tile load reads memory: what was written must be there before it.
inline void written() { asm volatile("" ::: "memory"); }

inline void zero_sums() {
  written();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void load_sums(const float *a, const float *b, const float *c, const float *d) {
  written();
  _tile_loadd(0, a, 64);
  _tile_loadd(1, b, 64);
  _tile_loadd(2, c, 64);
  _tile_loadd(3, d, 64);
}

inline void store_sums(float *a, float *b, float *c, float *d) {
  _tile_stored(0, a, 64);
  _tile_stored(1, b, 64);
  _tile_stored(2, c, 64);
  _tile_stored(3, d, 64);
}

inline void load_weights(const uint16_t *a, const uint16_t *b, int64_t stride) {
  _tile_loadd(4, a, stride);
  _tile_loadd(5, b, stride);
}

inline void multiply_one(const uint16_t *x) {
  _tile_loadd(6, x, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 5, 6);
}

inline void multiply_two(const uint16_t *x, const uint16_t *y) {
  _tile_loadd(6, x, 64);
  _tile_loadd(7, y, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 5, 6);
  _tile_dpbf16ps(2, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

// Up to 32 floats -> 32 bfloat16, zeros beyond `count`
inline __m512i narrow(const float *x, int64_t count) {
  const uint32_t mask = count >= 32 ? ~0u : (1u << count) - 1;
  const Words low = round_words((Floats)_mm512_maskz_loadu_ps(uint16_t(mask), x)) >> 16;
  const Words high = round_words((Floats)_mm512_maskz_loadu_ps(uint16_t(mask >> 16), x + 16)) >> 16;
  const __m512i halves = _mm512_castsi256_si512(_mm512_cvtepi32_epi16((__m512i)low));
  return _mm512_inserti64x4(halves, _mm512_cvtepi32_epi16((__m512i)high), 1);
}

// Element i of both -> words of two bfloat16, the first in the lower half
inline __m512i interleave(Floats first, Floats second) {
  return (__m512i)((round_words(first) >> 16) | (round_words(second) & 0xffff0000));
}

// 16 lines of 16 words, transposed in place
inline void transpose(__m512i *r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// Sums [16 weight rows][16 tokens] -> y[token][weight row], the first `tokens` and `rows` of them
inline void store_transposed(const float *sums, float *y, int64_t stride, int64_t tokens, int64_t rows) {
  __m512i lines[16];
  for (int i = 0; i < 16; i++) lines[i] = _mm512_load_si512(sums + 16 * i);
  transpose(lines);
  for (int64_t t = 0; t < tokens; t++)
    _mm512_mask_storeu_epi32(y + t * stride, uint16_t((1u << rows) - 1), lines[t]);
}
