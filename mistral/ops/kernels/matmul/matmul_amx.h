// The matrix product in AMX tiles: activations in the layouts TILES and HIGH_LOW_TILES.
#pragma once
#include "matmul/activations.h"

int64_t tiled_bytes(Layout layout, int64_t tokens, int64_t in);  // bytes of activations (tokens, in)
void pack_tiles(const Activations &a, int64_t k, const float *x, int64_t x_stride,
                int64_t count);  // see Activations::pack
void multiply_rows_amx(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride);
