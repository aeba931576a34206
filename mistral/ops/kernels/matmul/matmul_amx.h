// Matrix products in AMX tiles (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3).
#pragma once
#include <cstdint>

#include "matmul/activations.h"
#include "kernels.h"

// EMULATE_TILES does in plain C++ what the tile instructions do, to test these kernels on a processor without them.
#if defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__linux__)
#if defined(EMULATE_TILES) || (defined(__AMX_TILE__) && defined(__AMX_BF16__))
#define HAVE_TILES 1
#endif
#endif

bool tiles_available();  // compiled in, and granted by the operating system
int64_t tiled_bytes(Layout layout, int64_t tokens, int64_t in);
void fill_tiles(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count);
void tile_product(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
