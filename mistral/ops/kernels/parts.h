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
void rms_norm(const float *x, Matrix weight, float eps, float *y, int64_t tokens);
void add(const float *x, const float *y, float *sum, int64_t size);
void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool exact = false);
void feed_forward(const float *x, Matrix w1, Matrix w2, Matrix w3, float *y, int64_t tokens);
void attention(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
               Heads heads, const Row *rows, int64_t n_rows);
const char *instructions();
