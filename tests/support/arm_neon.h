// Stands for GCC's arm_neon.h where the kernels for aarch64 are tested on another processor: the few functions that they
// use, as Arm defines them (Arm C Language Extensions, "Neon Intrinsics"). -D__ARM_FEATURE_DOTPROD, and with it
// -D__ARM_FEATURE_MATMUL_INT8, choose the kernels. Not inline, so that unrolled kernels compile in seconds.
#pragma once
#include <cstdint>

typedef int8_t int8x16_t __attribute__((vector_size(16)));
typedef uint8_t uint8x16_t __attribute__((vector_size(16)));
typedef int32_t int32x4_t __attribute__((vector_size(16)));

// r[i] + products of four bytes of lane i
[[gnu::noinline, maybe_unused]] static int32x4_t vdotq_s32(int32x4_t r, int8x16_t a, int8x16_t b) {
  for (int i = 0; i < 16; i++) r[i / 4] += int32_t(a[i]) * b[i];
  return r;
}

// r[i] + products of four bytes of lane i with those of one lane of b
[[gnu::noinline, maybe_unused]] static int32x4_t vdotq_laneq_s32(int32x4_t r, int8x16_t a, int8x16_t b, int lane) {
  for (int i = 0; i < 16; i++) r[i / 4] += int32_t(a[i]) * b[4 * lane + i % 4];
  return r;
}

// r (2, 2) + a (2, 8) times the transpose of b (2, 8)
[[gnu::noinline, maybe_unused]] static int32x4_t vmmlaq_s32(int32x4_t r, int8x16_t a, int8x16_t b) {
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      for (int k = 0; k < 8; k++) r[2 * i + j] += int32_t(a[8 * i + k]) * b[8 * j + k];
  return r;
}

// The elements of a table with these numbers; 0 for numbers beyond it
[[gnu::noinline, maybe_unused]] static int8x16_t vqtbl1q_s8(int8x16_t table, uint8x16_t numbers) {
  int8x16_t found;
  for (int i = 0; i < 16; i++) found[i] = numbers[i] < 16 ? table[numbers[i]] : 0;
  return found;
}

// Sums of neighbours: those of a, then those of b
[[gnu::noinline, maybe_unused]] static int32x4_t vpaddq_s32(int32x4_t a, int32x4_t b) {
  return int32x4_t{a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
}
