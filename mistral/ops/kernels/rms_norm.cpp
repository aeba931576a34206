// RMSNorm (Zhang and Sennrich, arXiv:1910.07467): x (T, D) -> y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight (D,)
#include <cmath>

#include "all_threads.h"
#include "operators.h"
#include "scratch.h"
#include "simd.h"

void rms_norm(const float *x, Norm norm, float *y, int64_t tokens) {
  const bool several = tokens > 4;
  const AllThreads threads(several);
  const int64_t dim = norm.weight.in, zero = 0;
  static thread_local Scratch<float> weight_buffer;
  float *weight = weight_buffer.get(dim);
  embed(norm.weight, &zero, weight, 1);  // the only row of the weight (1, D), as float32
#pragma omp parallel for schedule(static) if (several)
  for (int64_t t = 0; t < tokens; t++) {
    const float *row = x + t * dim;
    Floats squares{};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) squares += load(row + i) * load(row + i);
    float total = sum(squares);
    for (; i < dim; i++) total += row[i] * row[i];
    const float scale = 1 / std::sqrt(total / dim + norm.eps);
    for (i = 0; i < dim; i++) y[t * dim + i] = row[i] * scale * weight[i];
  }
}
