// What the kernels offer: the only interface between them and the glue to MindSpore, plain C types alone.
// Letters: T tokens, H heads, KV key and value heads, d head_dim. Matrices are row-major.
#pragma once
#include <cstdint>

// The last two are the formats of mistral/quantized.py: a scale for each 32 weights and an exponent for each row.
enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BITS8 = 3, BITS4 = 4 };

struct Matrix {  // a weight (out, in) as it lies in the file; a vector is (1, in)
  const void *data;
  const uint8_t *scales, *exponents;  // of 8 and 4 bits
  Type type;
  int64_t out, in;
};

struct Row {  // one sequence of a step: its new tokens, those before, and its cache (KV, slots, d)
  int64_t tokens, before, slots;  // slots 0: no cache
  void *keys, *values;            // bfloat16, or float where `precise`
};

struct Heads {
  int64_t heads, kv_heads, head_dim, window;  // window: positions visible, a very large number where there is none
};

struct Norm {
  Matrix weight;
  float eps;
};

struct AttentionWeights {
  Norm norm;
  Matrix wq, wk, wv, wo;
};

struct Expert {
  Matrix w1, w2, w3;
};

// `precise`: activations, keys and values stay float32 whatever a weight's type; else keys and values are rounded to
// bfloat16, and activations where they meet bfloat16 weights; where they meet those of 8 and 4 bits, to bfloat16 or, on
// processors without tiles, to integers of 14 bits.
struct Kernels {
  void (*embed)(Matrix table, const int64_t *ids, float *y, int64_t tokens);
  void (*rms_norm)(const float *x, Norm norm, float *y, int64_t tokens);
  void (*linear)(const float *x, Matrix weight, float *y, int64_t tokens, bool precise);
  // q (T, H, d), k and v (T, KV, d), not yet turned; cos and sin (T, d); out (T, H, d). Writes the rows' caches.
  void (*attention)(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
                    Heads heads, const Row *rows, int64_t n_rows, bool precise);
  void (*feed_forward)(const float *x, Expert weights, float *y, int64_t tokens, bool precise);
  void (*mixture)(const float *x, Matrix gate, const Expert *experts, int64_t chosen, float *y, int64_t tokens,
                  bool precise);
  // Half a transformer block each, normalisation and sum included: y = x + f(norm(x)), x and y (T, D)
  void (*attention_block)(const float *x, const AttentionWeights &weights, const float *cos, const float *sin, float *y,
                          Heads heads, const Row *rows, int64_t n_rows, bool precise);
  void (*feed_forward_block)(const float *x, Norm norm, Expert weights, float *y, int64_t tokens, bool precise);
  void (*mixture_block)(const float *x, Norm norm, Matrix gate, const Expert *experts, int64_t chosen, float *y,
                        int64_t tokens, bool precise);
  const char *instructions;  // what this build multiplies with
};

extern "C" const Kernels *mistral_kernels();
