// A row of a weight W (out, in), decoded on the fly into vectors: one class for each type of weight. The
// microkernels are templates of it, and use these members:
//
//   floats(k)     LANES elements from k on as float32
//   odd_even(k)   2 * LANES elements as float32, in the order of vdpbf16ps (bfloat16 weights only)
//   pairs(k)      32 elements as bfloat16                (where HAVE_BF16)
//   *_run(k, w)   four consecutive vectors at once
//   *_padded(k)   as above, with zeros beyond the end of the row
//   factor()      what the sum of products is multiplied with: 1, or the scale of the matrix
//   prefetch<L>(k, count)   fetches elements into the cache of the first level (L = 3) or the second (2); they may lie
//                           beyond the row
//   pitch()       elements from a row to the next
#pragma once
#include <algorithm>

#include "kernels.h"
#include "matmul/float8.h"
#include "simd.h"

// 2 * LANES elements of bfloat16 as floats, those at odd indices apart from those at even ones
struct OddEven {
  Floats odd, even;
  OddEven() {}
  explicit OddEven(const void *from) {
    Words w;
    memcpy(&w, from, sizeof w);
    if constexpr (LANES < 16) w = computed(w);
    odd = (Floats)(w & 0xffff0000), even = (Floats)(w << 16);
  }
};

inline OddEven computed(OddEven x) {
  x.odd = computed(x.odd), x.even = computed(x.even);
  return x;
}

template <int LOCALITY>
inline void prefetch_bytes(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char *>(p) + i, 0, LOCALITY);
}

template <class Element>  // float, Bf16 or F16
struct DenseWeightRow {
  static constexpr int ROWS_AT_ONCE = 2;            // rows read side by side for a single token
  static constexpr bool RARELY_FLOAT = false;  // whether only `precise` multiplies it with floats
  const Element *data;
  int64_t in;

  DenseWeightRow() = default;
  DenseWeightRow(Matrix w, int64_t n) : data(static_cast<const Element *>(w.data) + n * w.in), in(w.in) {}
  float factor() const { return 1; }
  int64_t pitch() const { return in; }
  template <int LOCALITY>
  void prefetch(int64_t k, int64_t count) const { prefetch_bytes<LOCALITY>(data + k, count * sizeof(Element)); }
  Floats floats(int64_t k) const { return load(data + k); }
  Floats floats_padded(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    Element padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return load(padded);
  }
  OddEven odd_even(int64_t k) const { return OddEven(data + k); }
  OddEven odd_even_padded(int64_t k) const {
    if (k + 2 * LANES <= in) return odd_even(k);
    Element padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * LANES && k + i < in; i++) padded[i] = data[k + i];
    return OddEven(padded);
  }
#ifdef HAVE_BF16
  void pairs_run(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v++) w[v] = (Pairs)_mm512_loadu_si512(data + k + 32 * v);
  }
  Pairs pairs_padded(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(in - k, 0, 32);
    return (Pairs)_mm512_maskz_loadu_epi16(uint32_t((uint64_t(1) << left) - 1), data + k);
  }
#endif
};

struct WeightRowFloat8 {  // E4M3, with one scale for the matrix; decoded to 2^-8 of what it stands for
  static constexpr int ROWS_AT_ONCE = 4;
  static constexpr bool RARELY_FLOAT = true;
  const uint8_t *data;
  int64_t in;
  float scale;

  WeightRowFloat8() = default;
  WeightRowFloat8(Matrix w, int64_t n)
      : data(static_cast<const uint8_t *>(w.data) + n * w.in), in(w.in), scale(*w.scale) {}
  float factor() const { return scale * 256; }
  int64_t pitch() const { return in; }
  template <int LOCALITY>
  void prefetch(int64_t k, int64_t count) const { prefetch_bytes<LOCALITY>(data + k, count); }
  Floats floats(int64_t k) const { return decode_float8(data + k); }
  Floats floats_padded(int64_t k) const {
    if (k + LANES <= in) return floats(k);
    uint8_t padded[LANES] = {};
    for (int64_t i = 0; i < LANES && k + i < in; i++) padded[i] = data[k + i];
    return decode_float8(padded);
  }
  OddEven odd_even(int64_t k) const { return decode_odd_even(data + k); }
  OddEven odd_even_padded(int64_t k) const {
    if (k + 2 * LANES <= in) return odd_even(k);
    uint8_t padded[2 * LANES] = {};
    for (int64_t i = 0; i < 2 * LANES && k + i < in; i++) padded[i] = data[k + i];
    return decode_odd_even(padded);
  }
  static OddEven decode_odd_even(const uint8_t *from) {
    OddEven x;
    decode_float8_odd_even(from, x.odd, x.even);
    return x;
  }
#ifdef HAVE_BF16
  void pairs_run(int64_t k, Pairs *w) const {
    for (int v = 0; v < 4; v += 2) decode_float8_pairs(data + k + 32 * v, w[v], w[v + 1]);
  }
  Pairs pairs_padded(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(in - k, 0, 32);
    return float8_pairs(_mm256_maskz_loadu_epi8(uint32_t((uint64_t(1) << left) - 1), data + k));
  }
#endif
};
