// The C interface of the kernel library, in plain C types: all that glue.cpp, which makes MindSpore operators of the
// kernels, knows of them.
//
// Where to read:
//   embed.cpp rms_norm.cpp mixture.cpp transformer_block.cpp   the operators of a transformer block
//   matmul/      W (out, in) @ x (T, in) -> y (T, out) and the feed-forward network, for weights of every type
//   blocks/      the same product for weights in the block formats of GGUF files, in integers
//   attention/   RoPE, the rolling cache, attention by online softmax
//   operators.h  the operators' declarations
//   simd.h scratch.h transpose.h processor.h amx.h   vectors, buffers, and what the processor multiplies with
//   roofline.cpp   memory bandwidth and peak arithmetic of the machine
//
// Letters: T tokens of a step, D model dim, F hidden dim, H heads, KV key and value heads, d head_dim, V vocabulary.
// Arrays are row-major and contiguous, activations are float32, and results never overlap inputs.
#pragma once
#include <cstdint>

// Element types of a weight. FLOAT8 is E4M3 (OCP 8-bit floating point, 2023: a sign, 4 bits of exponent with bias 7, 3
// of mantissa, no infinity); all weights of a matrix share a float32 scale. The others are the block formats of GGUF
// files, in blocks of 32 weights and, from BLOCKS_Q4_K on, of 256: see blocks/formats.h.
enum Type : int32_t {
  FLOAT32 = 0,
  BFLOAT16 = 1,
  FLOAT16 = 2,
  FLOAT8 = 3,
  BLOCKS_Q8_0 = 4,
  BLOCKS_Q4_0 = 5,
  BLOCKS_Q4_1 = 6,
  BLOCKS_Q5_0 = 7,
  BLOCKS_Q5_1 = 8,
  BLOCKS_IQ4_NL = 9,
  BLOCKS_Q4_K = 10,
  BLOCKS_Q5_K = 11,
  BLOCKS_Q6_K = 12,
  BLOCKS_IQ4_XS = 13
};

struct Matrix {  // a weight (out, in) as it lies in the file; a vector is (1, in)
  const void *data;
  const float *scale;  // of FLOAT8
  Type type;
  int64_t out, in;
};

struct Sequence {                 // one sequence of a step and its rolling cache
  int64_t tokens, before, slots;  // new tokens, tokens before them, slots of the cache (0: no cache)
  void *keys, *values;            // the cache, each (KV, slots, d): bfloat16, or float32 where `precise`
};

struct Heads {
  int64_t heads, kv_heads, head_dim;  // H, KV, d
  int64_t window;                     // key j is visible to query i iff 0 <= i - j < window; very large: no window
};

struct Rotation {                // of the queries and keys of a step, by the rotary embedding
  const float *cos, *sin;        // (T, d), each value twice, for the two elements of a pair
  const float *query_factors;    // (T,): queries are multiplied by these after that; null: by nothing
};

struct Norm {
  Matrix weight;
  float eps;
};

struct AttentionWeights {
  Norm norm;
  Matrix wq, wk, wv, wo;
};

struct FeedForwardWeights {  // of a dense block or of one expert
  Matrix w1, w2, w3;         // (F, D), (D, F), (F, D)
};

// A transformer block. Its feed-forward network is that of one expert where `gate` has no data; otherwise a mixture of
// gate.out experts, of which each token uses `chosen`.
struct TransformerBlock {
  AttentionWeights attention;
  int64_t window;  // as in Heads
  Norm norm;       // of what comes after attention
  Matrix gate;
  const FeedForwardWeights *experts;
  int64_t chosen;
};

// `precise`: activations, keys and values stay float32 whatever a weight's type. Otherwise keys and values are rounded
// to bfloat16, activations to bfloat16 for bfloat16 and FLOAT8 weights, and to integers of 8 bits with a scale for each
// block (blocks/activations.h) for weights in blocks.
struct Kernels {
  void (*embed)(Matrix table, const int64_t *ids, float *y, int64_t tokens);  // table (V, D), ids (T,) -> y (T, D)
  void (*rms_norm)(const float *x, Norm norm, float *y, int64_t tokens);      // x (T, D) -> y (T, D)
  void (*linear)(const float *x, Matrix weight, float *y, int64_t tokens, bool precise);  // x (T, in) -> y (T, out)
  // q (T, H, d), k and v (T, KV, d), before RoPE; out (T, H, d). Writes the sequences' caches.
  void (*attention)(const float *q, const float *k, const float *v, Rotation rotation, float *out, Heads heads,
                    const Sequence *sequences, int64_t n_sequences, bool precise);
  // y = w2 (silu(w1 x) * (w3 x)), x and y (T, D)
  void (*feed_forward)(const float *x, FeedForwardWeights weights, float *y, int64_t tokens, bool precise);
  // Mixture of gate.out experts, of which each token uses `chosen`; gate (E, D), x and y (T, D)
  void (*mixture)(const float *x, Matrix gate, const FeedForwardWeights *experts, int64_t chosen, float *y,
                  int64_t tokens, bool precise);
  // Blocks one after the other, x and y (T, D); sequences (n_blocks, n_sequences): each block has caches of its own. The
  // window of `heads` is not read.
  void (*transformer_blocks)(const float *x, const TransformerBlock *const *blocks, int64_t n_blocks, Rotation rotation, float *y,
                             Heads heads, const Sequence *sequences, int64_t n_sequences, bool precise);
  // The second half of a block, x and y (T, D)
  void (*feed_forward_half)(const float *x, const TransformerBlock &block, float *y, int64_t tokens, bool precise);
  const char *instructions;  // name of the widest instructions that this build multiplies with
};

extern "C" const Kernels *mistral_kernels();
