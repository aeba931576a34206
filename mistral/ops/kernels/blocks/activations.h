// Activations as integers of 8 bits, one scale for each block of 32 or 256, and the product of a weight in blocks with
// them. The definition, for a row of the weight and a token, with blocks b in their order:
//
//   y = 0
//   y = fma(sum of (q * s) x over block b, d * scale of x, y)
//   y = fma(sum of m x over block b, -dmin * scale of x, y)        where the format has minima
//
// The sums in brackets are sums of integers, exact in 32 bits. So every loop gives the same bits, whatever it sums side
// by side: on any processor with a fused multiply-add, for any number of tokens, rows or threads.
//
// Tokens are rows of integers, or lie side by side, up to MOST_LANES of them (LANES_*), filled up with zeros:
//
//   data     [group of tokens][column / 4][token of the group][4]
//   scales   [group of tokens][block][token of the group]
//   sums     [group of tokens][block][word][token of the group], words of 32 bits: the sum of a block of 32; of a block
//            of 256 four pairs of sums over 32, and eight pairs of sums over 16
#pragma once
#include "matmul/activations.h"

constexpr float INT8_LARGEST = 127;
constexpr int64_t IN_PLACE_TOKENS = 4;  // multiplied at a time where weights lie, without lanes
constexpr int64_t TILED_TOKENS = 16;    // more than these are multiplied by AMX tiles, where there are any
constexpr int64_t LARGE_SUMS = 12;  // words of sums of a block of 256

Layout blocks_layout(Type weight, int64_t tokens);
Activations empty_blocks(Scratch<float> &buffer, Layout layout, int64_t tokens, int64_t in);
void pack_blocks(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count);

// A block of `size` numbers -> integers and their sums over every 32 (blocks of 32) or 16 (of 256). Returns the scale:
// NaN where a number is NaN or infinite.
float quantize_block(const float *x, int64_t size, int8_t *to, int16_t *sums);

// y[t * stride + i] = row first + i of w (out, in) times token t of x, for all tokens and i < rows <= MAX_ROWS, on the
// calling thread
void multiply_rows_blocks(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

// The same by the loops for tokens in rows, and by those for tokens that lie side by side
void multiply_blocks_in_place(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_small_blocks_lanes(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_large_blocks_lanes(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);

// The same with many tokens in rows: by instructions for bytes of aarch64, and by AMX tiles (panel.h)
void multiply_blocks_neon(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
void multiply_blocks_tiles(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
