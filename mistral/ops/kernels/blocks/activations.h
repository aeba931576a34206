// Activations as integers of 8 bits, one scale for each block of 32 or 256, and the product of a weight in blocks with
// them. The definition, for a row of the weight and a token, with blocks b in their order:
//
//   y = 0
//   y = fma(sum of (q * s) x over block b, d * scale of x, y)
//   y = fma(sum of m x over block b, -dmin * scale of x, y)        where the format has minima
//
// The sums in brackets are sums of integers, exact in 32 bits. So every loop gives the same bits, whatever it sums side
// by side: on any processor with a fused multiply-add, for any number of tokens, rows or threads.
#pragma once
#include "matmul/activations.h"

constexpr float INT8_LARGEST = 127;

// A block of `size` numbers -> integers and their sums over every 32 (blocks of 32) or 16 (of 256). Returns the scale:
// NaN where a number is NaN or infinite.
float quantize_block(const float *x, int64_t size, int8_t *to, int16_t *sums);

// y[t * stride + i] = row first + i of w (out, in) times token t of x, for all tokens and i < rows <= MAX_ROWS, on the
// calling thread
void multiply_rows_blocks(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

// The same by the loop for few tokens, with weights as they lie, and by
// those for many (panel.h)
void multiply_blocks_in_place(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_blocks_bytes(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_blocks_words(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_blocks_neon(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_blocks_tiles(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
