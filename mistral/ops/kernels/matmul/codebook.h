// The codebook of 4-bit weights: the whole number that each nibble stands for under each scale. The weight is this
// number times its row's factor. mistral/ops/quantized.py defines the format.
#pragma once
#include <cstdint>

struct Codebook {  // [scale][nibble]
  alignas(64) float floats[256][16];
  alignas(64) uint16_t bf16[256][32];  // the 16 entries twice, so that an index of five bits needs no mask
  alignas(64) int16_t int16[256][32];  // the same
};
extern const Codebook codebook;
