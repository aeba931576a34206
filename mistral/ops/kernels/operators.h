// The kernels, each in its file.
#pragma once
#include <omp.h>

#include <cstdlib>

#include "kernels.h"

// All threads for as long as it lives: MindSpore leaves its thread that launches operators with one.
struct AllThreads {
  const int before = omp_get_max_threads();
  AllThreads() {
    static const int asked = std::atoi(std::getenv("OMP_NUM_THREADS") ? std::getenv("OMP_NUM_THREADS") : "0");
    omp_set_num_threads(asked > 0 ? asked : omp_get_num_procs());
  }
  ~AllThreads() { omp_set_num_threads(before); }
};

void embed(Matrix table, const int64_t *ids, float *y, int64_t tokens);
void rms_norm(const float *x, Norm norm, float *y, int64_t tokens);
void add(const float *x, float *y, int64_t size);  // y += x
void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool precise);
void linear_three(const float *x, const Matrix *weights, float *const *y, int64_t tokens, bool precise);
void feed_forward(const float *x, Expert weights, float *y, int64_t tokens, bool precise);
void mixture(const float *x, Matrix gate, const Expert *experts, int64_t chosen, float *y, int64_t tokens,
             bool precise);
void attention(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
               Heads heads, const Row *rows, int64_t n_rows, bool precise);
const char *instructions();
