// What the kernels offer: the only interface between them and the glue to MindSpore, plain C types alone.
// Letters: T tokens, H heads, KV key and value heads, d head_dim. Matrices are row-major.
#pragma once
#include <cstdint>

enum Type : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

struct Matrix {  // a weight (out, in) as it lies in the file; a vector is (1, in)
  const void *data;
  Type type;
  int64_t out, in;
};

struct Row {  // one sequence of a step: its new tokens, those before, and its cache (KV, slots, d) in bfloat16
  int64_t tokens, before, slots;  // slots 0: no cache
  uint16_t *keys, *values;
};

struct Heads {
  int64_t heads, kv_heads, head_dim, window;  // window: positions visible, a very large number where there is none
};

struct Kernels {
  void (*embed)(Matrix table, const int64_t *ids, float *y, int64_t tokens);
  void (*rms_norm)(const float *x, Matrix weight, float eps, float *y, int64_t tokens);
  void (*add)(const float *x, const float *y, float *sum, int64_t size);
  // exact: activations stay float32 whatever the weight's type
  void (*linear)(const float *x, Matrix weight, float *y, int64_t tokens, bool exact);
  void (*feed_forward)(const float *x, Matrix w1, Matrix w2, Matrix w3, float *y, int64_t tokens);
  // q (T, H, d), k and v (T, KV, d), not yet turned; cos and sin (T, d); out (T, H, d). Writes the rows' caches.
  void (*attention)(const float *q, const float *k, const float *v, const float *cos, const float *sin, float *out,
                    Heads heads, const Row *rows, int64_t n_rows);
  const char *instructions;  // what this build multiplies with
};

extern "C" const Kernels *mistral_kernels();
