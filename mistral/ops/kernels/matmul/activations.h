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
  INT16_ROWS,     // rows of integers of 14 bits; every INT16_K_BLOCK elements of a row share a scale
  TILES,          // AMX tiles of 16 tokens in bfloat16, see matmul_amx.cpp
  HIGH_LOW_TILES  // the same with each float32 as the sum of two bfloat16: x rounded, and the rest rounded
};

constexpr int64_t MAX_TOKENS = 512;         // tokens that are packed and multiplied at a time
constexpr int64_t FEW_TOKENS = 8;           // up to so many are multiplied with weight rows as they lie
constexpr int64_t MEMORY_BOUND_TOKENS = 2;  // up to so many, reading the weights takes longer than any arithmetic
constexpr int64_t MAX_ROWS = 512;           // weight rows that multiply_rows takes at a time

// Elements that share a scale, and the largest integer. The sums of products are exact: a lane adds 128 products of at
// most 8191 * 2032 (the largest number that a weight stands for), which is less than 2^31.
constexpr int64_t INT16_K_BLOCK = 128 * LANES;
constexpr float INT14_MAX = 8191;

struct Activations {
  Layout layout;
  int64_t tokens, in;
  int64_t stride;  // elements from row to row; rows are filled up with zeros
  void *data;
  float *scales;       // INT16_ROWS: scales[token * scale_step + block of INT16_K_BLOCK]
  int64_t scale_step;  // 0: a single scale of 1 for all

  // Packs columns k to k + count of all tokens, whose first is at x[0], x[x_stride], ...; k is a multiple of 32, and of
  // INT16_K_BLOCK for INT16_ROWS.
  void pack(int64_t k, const float *x, int64_t x_stride, int64_t count) const;
};

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
void multiply_rows_int16(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
