// Activations x (T, in), packed into the layout that a microkernel reads. They are packed once and multiplied with
// several weights.
#pragma once
#include "kernels.h"
#include "scratch.h"
#include "simd.h"

enum Layout {
  FLOAT_ROWS,     // rows of float32
  PAIR_ROWS,      // rows of bfloat16
  ODD_EVEN_ROWS,  // rows of bfloat16 as float32: of every 2 * LANES elements first the odd ones, then the even ones
  TILES,           // AMX tiles of 16 tokens in bfloat16, see matmul_amx.cpp
  HIGH_LOW_TILES,  // the same with each float32 as the sum of two bfloat16: x rounded, and the rest rounded
  // 8-bit integers, for weights in blocks: see blocks/activations.h
  BLOCKS_32,       // rows; every 32 elements of a row share a scale
  BLOCKS_256,      // the same for every 256
  LANES_32,        // the same two with tokens side by side
  LANES_256
};

constexpr int64_t MAX_TOKENS = 512;         // tokens that are packed and multiplied at a time
constexpr int64_t FEW_TOKENS = 8;           // up to so many are multiplied with weight rows as they lie
constexpr int64_t MEMORY_BOUND_TOKENS = 2;  // up to so many, reading the weights takes longer than any arithmetic
constexpr int64_t MAX_ROWS = 512;           // weight rows that multiply_rows takes at a time

struct Activations {
  Layout layout;
  int64_t tokens, in;
  int64_t stride;  // elements from row to row; rows are filled up with zeros
  void *data;
  // For weights in blocks:
  float *scales = nullptr;  // scales[token * scale_step + block]
  int64_t scale_step = 0;
  int16_t *sums = nullptr;  // sums[token * sums_step + i]: of 32 elements from 32 i on, or of 16 from 16 i on
  int64_t sums_step = 0;
  int lanes = 0;  // tokens that lie side by side; then the three steps are those from so many tokens to the next

  // Packs columns k to k + count of all tokens, whose first is at x[0], x[x_stride], ...; k is a multiple of 32, and k
  // and count of 256 for BLOCKS_256.
  void pack(int64_t k, const float *x, int64_t x_stride, int64_t count) const;
};

inline bool is_in_blocks(Layout layout) { return layout >= BLOCKS_32; }
inline bool is_tiled(Layout layout) { return layout == TILES || layout == HIGH_LOW_TILES; }
inline bool has_lanes(Layout layout) { return layout >= LANES_32; }
inline bool has_small_blocks(Layout layout) { return layout == BLOCKS_32 || layout == LANES_32; }

Layout layout_for(Type weight, int64_t tokens, bool precise);

// The memory of activations, which the calling thread keeps from call to call. A second call invalidates the first's.
struct ActivationScratch {
  Scratch<float> buffer;
  Activations empty(Layout layout, int64_t tokens, int64_t in);                 // to be packed by the caller
  Activations pack(const float *x, Layout layout, int64_t tokens, int64_t in);  // x (tokens, in), on all threads
};

// y[t * stride + i] = row first + i of w (out, in) times token t of x, for all tokens and i < rows <= MAX_ROWS, on the
// calling thread
void multiply_rows(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

// The same for one layout, each in a file of its own
void multiply_rows_float(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_rows_pairs(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_rows_odd_even(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
