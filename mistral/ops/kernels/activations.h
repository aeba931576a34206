// Activations as a product wants them. They are laid out once and meet several weights.
#pragma once
#include "kernels.h"
#include "vector.h"

enum Layout {
  FLOATS,   // rows of floats
  ROUNDED,  // rows of floats, each rounded to bfloat16
  PAIRS,    // rows of bfloat16
  TILES,    // tiles of 16 tokens, see tiles.cpp
  SPLIT     // the same twice over: each float as the sum of two bfloat16
};

constexpr int64_t CHUNK = 512;  // tokens at a time, at most
constexpr int64_t FEW = 8;      // tokens that meet a row of weights together

struct Activations {
  Layout layout;
  int64_t tokens, in, stride;  // stride: elements from row to row, filled up with zeros
  void *data;

  // Columns k to k + count of all tokens, from rows x; k is a multiple of 32.
  void fill(int64_t k, const float *x, int64_t x_stride, int64_t count) const;
};

Layout layout_for(Type weight, bool precise);

// Memory for them, which the calling thread keeps from call to call
struct ActivationScratch {
  Scratch<float> kept;
  Activations empty(Layout layout, int64_t tokens, int64_t in);
  Activations lay_out(const float *x, Layout layout, int64_t tokens, int64_t in);  // on all threads
};

// y[t][i] = activations of token t times row first + i of the weight, for i < rows <= MOST_ROWS; on this thread
constexpr int64_t MOST_ROWS = 128;
void product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

void float_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void pair_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
