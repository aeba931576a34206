// Activations as a product wants them. They are laid out once and meet several weights.
#pragma once
#include "kernels.h"
#include "simd.h"

enum Layout {
  FLOATS,   // rows of floats
  PAIRS,    // rows of bfloat16
  HALVED,   // the same as floats: of each 2 * LANES first the odd ones, then the even ones
  INTEGERS, // rows of integers of 14 bits; each row's part of INTEGER_PART has the scale that its largest asks for
  TILES,    // tiles of 16 tokens, see tiles.cpp
  SPLIT     // the same twice over: each float as the sum of two bfloat16
};

constexpr int64_t CHUNK = 512;  // tokens at a time, at most
constexpr int64_t FEW = 8;      // tokens that meet a row of weights as it lies
constexpr int64_t FEWEST = 2;   // for which memory is slower than any kind of product

// Products of integers are exact: a lane sums 128 of at most 8191 * 2032 (a weight's largest), less than 2^31.
constexpr int64_t INTEGER_PART = 128 * LANES;
constexpr float LARGEST = 8191;

struct Activations {
  Layout layout;
  int64_t tokens, in, stride;  // stride: elements from row to row, filled up with zeros
  void *data;
  float *scales;       // of parts of a row: scales[token * scale_step + part]
  int64_t scale_step;  // 0: one for all

  // Columns k to k + count of all tokens, from rows x; k is a multiple of 32, and of INTEGER_PART for integers.
  void fill(int64_t k, const float *x, int64_t x_stride, int64_t count) const;
};

bool pairs_pay();  // whether products of pairs of bfloat16 are faster here than those of floats
Layout layout_for(Type weight, int64_t tokens, bool precise);

// Memory for them, which the calling thread keeps from call to call
struct ActivationScratch {
  Scratch<float> kept;
  Activations empty(Layout layout, int64_t tokens, int64_t in);
  Activations lay_out(const float *x, Layout layout, int64_t tokens, int64_t in);  // on all threads
};

// y[t][i] = activations of token t times row first + i of the weight, for i < rows <= MOST_ROWS; on this thread
constexpr int64_t MOST_ROWS = 512;
void product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

void float_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void pair_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void split_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void integer_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
