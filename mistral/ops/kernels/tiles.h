// Matrix products in AMX tiles (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3).
#pragma once
#include <cstdint>

#include "kernels.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#define HAVE_TILES 1
#endif

bool tiles_available();  // compiled in, and granted by the operating system
void tiled_linear(const float *x, Matrix weight, float *y, int64_t tokens);
void tiled_feed_forward(const float *x, Matrix w1, Matrix w2, Matrix w3, float *y, int64_t tokens);
