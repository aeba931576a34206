// Matrices in the block formats of GGUF files, row by row.
#include <vector>

#include "all_threads.h"
#include "quantize/block.h"

namespace quantize {
namespace {

// The quantizer of a format, by its number in GGUF files, and the bytes of a block of so many weights
struct Format {
  int32_t number;
  Quantizer quantizer;
  int64_t weights, nbytes;
};

constexpr Format FORMATS[] = {
    {2, q4_0, 32, 18},    {3, q4_1, 32, 20},    {6, q5_0, 32, 22},    {7, q5_1, 32, 24},    {8, q8_0, 32, 34},
    {12, q4_k, 256, 144}, {13, q5_k, 256, 176}, {14, q6_k, 256, 210}, {20, iq4_nl, 32, 18}, {23, iq4_xs, 256, 136},
};

enum Source { FROM_FLOAT32, FROM_BFLOAT16, FROM_FLOAT16 };

// Weight k of a row as float32
float value_of(const void *row, int32_t type, int64_t k) {
  if (type == FROM_FLOAT32) return static_cast<const float *>(row)[k];
  const uint16_t bits = static_cast<const uint16_t *>(row)[k];
  if (type == FROM_FLOAT16) return half_value(bits);
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// A row -> float32; NaN and infinity become 0. Returns their number.
int64_t widened(const void *row, int32_t type, int64_t columns, float *x) {
  int64_t lost = 0;
  for (int64_t k = 0; k < columns; k++) x[k] = value_of(row, type, k);
  for (int64_t k = 0; k < columns; k++)
    if (!std::isfinite(x[k])) x[k] = 0, lost++;
  return lost;
}

}  // namespace
}  // namespace quantize

// values (rows, columns) of `type` float32, bfloat16 or float16 -> blocks of the format with that number. importances:
// (columns,) or null. NaN and infinity are taken as 0; returns their number, or -1 for a format that is not known.
extern "C" int64_t quantize_blocks(const void *values, int32_t type, int64_t rows, int64_t columns, int32_t format,
                                   const float *importances, uint8_t *out) {
  using namespace quantize;
  const Format *found = nullptr;
  for (const Format &each : FORMATS)
    if (each.number == format) found = &each;
  if (!found || columns % found->weights) return -1;
  const AllThreads threads;
  const int64_t size = type == FROM_FLOAT32 ? 4 : 2, nbytes = columns / found->weights * found->nbytes;
  int64_t lost = 0;
#pragma omp parallel reduction(+ : lost)
  {
    std::vector<float> x(columns);
#pragma omp for schedule(dynamic, 8)
    for (int64_t row = 0; row < rows; row++) {
      lost += widened(static_cast<const char *>(values) + row * columns * size, type, columns, x.data());
      found->quantizer(x.data(), importances, columns, out + row * nbytes);
    }
  }
  return lost;
}
