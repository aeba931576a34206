// The operators that the kernel library is made of, each defined in the file that bears its name or is named beside it.
// Shapes and the meaning of `precise`: kernels.h.
#pragma once
#include "kernels.h"

void embed(Matrix table, const int64_t *ids, float *y, int64_t tokens);
void rms_norm(const float *x, Norm norm, float *y, int64_t tokens);

// matmul/matmul.cpp
void linear(const float *x, Matrix weight, float *y, int64_t tokens, bool precise);
// weights[i] (out_i, in) @ x (T, in) -> y[i] (T, out_i) for three weights, in one parallel region
void linear_three(const float *x, const Matrix *weights, float *const *y, int64_t tokens, bool precise);
void feed_forward(const float *x, FeedForwardWeights weights, float *y, int64_t tokens, bool precise);

void mixture(const float *x, Matrix gate, const FeedForwardWeights *experts, int64_t chosen, float *y, int64_t tokens,
             bool precise);

// attention/attention.cpp
void attention(const float *q, const float *k, const float *v, Rotation rotation, float *out, Heads heads,
               const Sequence *sequences, int64_t n_sequences, bool precise);
