#include "attention/stream_panels.h"

#include "matmul/activations.h"

int64_t tokens_at_once(Heads heads, bool precise) {
  const int64_t queries = !precise && tiles_available() ? 512 : 256;
  return std::max<int64_t>(1, queries * heads.kv_heads / heads.heads);
}

void stream(const float *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<float> &past) {
  stream_in_panels<FloatPanel>(queries, out, heads, position, count, past);
}

void stream(const Bf16 *queries, float *out, Heads heads, int64_t position, int64_t count, const Past<Bf16> &past) {
  if (heads.head_dim % 32 == 0 && tiles_available()) return stream_tiled(queries, out, heads, position, count, past);
#ifdef HAVE_PAIRS
  if (pairs_pay()) return stream_in_panels<PairPanel>(queries, out, heads, position, count, past);
#endif
  stream_in_panels<FloatPanel>(queries, out, heads, position, count, past);
}
