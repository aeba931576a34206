// The arithmetics of a matrix product: how a vector of weights times a vector of activations is added to a vector of
// sums. The microkernels are templates of one of these classes, M.
//
//   FloatMath     float32 products                                  weights of any type, activations of FLOAT_ROWS
//   OddEvenMath   products of bfloat16 as float32                   bfloat16 weights, ODD_EVEN_ROWS
//   PairMath      vdpbf16ps: two products of bfloat16 a lane        bfloat16 weights, PAIR_ROWS
//
// OddEvenMath and PairMath give the same bits, for vdpbf16ps is two float32 products, first that of the odd elements,
// then that of the even ones (only subnormal numbers, which it takes as zero, differ). A panel that is packed with
// OddEvenMath holds odd and even elements in this order, so FloatMath multiplies it with the same result again.
#pragma once
#include "matmul/activations.h"
#include "matmul/weight_rows.h"

struct FloatMath {
  using Panel = FloatMath;  // arithmetic of panels that are packed with this one
  using Element = float;    // of activations and panels
  using Vector = Floats;    // of elements
  using Sum = Floats;
  static constexpr int64_t STEP = LANES;          // elements in a Vector
  static constexpr int64_t K_BLOCK = 1024;        // elements of a row whose products are summed in the lanes of a Sum
  static constexpr int RUN = 4;                   // vectors of a row that are loaded together
  static constexpr int ROWS_AT_ONCE = 2;          // rows that are read side by side for a single token
  static constexpr int TOGETHER = LANES == 16 ? 8 : 4;  // tokens whose sums with two rows stay in registers
  static constexpr int SMALL_BATCH = TOGETHER;          // up to so many have code of their own
  static constexpr int MR = LANES == 16 ? 6 : 2;  // tokens of a microkernel: MR * NR sums fit into the registers
  static Vector load(const float *p) { return ::load(p); }
  static void store(float *p, Vector x) { ::store(p, x); }
  static Sum add(Sum sum, Vector w, Vector x) { return sum + w * x; }
  static Floats finish(Sum sum) { return sum; }
  template <class WeightRow>
  static Vector load_padded(const WeightRow &row, int64_t k) {
    return row.floats_padded(k);
  }
  template <class WeightRow>
  static void load_run(const WeightRow &row, int64_t k, Vector *w) {
    for (int v = 0; v < 4; v++) w[v] = row.floats(k + v * LANES);
  }
};

struct OddEvenMath {
  using Panel = FloatMath;
  using Element = float;
  using Vector = OddEven;
  using Sum = Floats;
  static constexpr int64_t STEP = 2 * LANES;
  static constexpr int64_t K_BLOCK = FloatMath::K_BLOCK;
  static constexpr int RUN = LANES == 16 ? 2 : 1;
  static constexpr int ROWS_AT_ONCE = LANES == 16 ? 4 : 8;
  static constexpr int TOGETHER = FloatMath::TOGETHER;
  static constexpr int SMALL_BATCH = 4;
  static Vector load(const float *p) {
    OddEven x;
    x.odd = ::load(p), x.even = ::load(p + LANES);
    if constexpr (LANES < 16) x.odd = computed(x.odd), x.even = computed(x.even);
    return x;
  }
  static void store(float *p, Vector x) { ::store(p, x.odd), ::store(p + LANES, x.even); }
  static Sum add(Sum sum, Vector w, Vector x) { return (sum + w.odd * x.odd) + w.even * x.even; }
  static Floats finish(Sum sum) { return sum; }
  template <class WeightRow>
  static Vector load_padded(const WeightRow &row, int64_t k) {
    return row.odd_even_padded(k);
  }
  template <class WeightRow>
  static void load_run(const WeightRow &row, int64_t k, Vector *w) {
    for (int v = 0; v < RUN; v++) w[v] = row.odd_even(k + v * STEP);
  }
};

#ifdef HAVE_BF16
struct PairMath {
  using Panel = PairMath;
  using Element = uint16_t;
  using Vector = Pairs;
  using Sum = Floats;
  static constexpr int64_t STEP = BF16_LANES;
  static constexpr int64_t K_BLOCK = OddEvenMath::K_BLOCK;
  static constexpr int RUN = 4;
  static constexpr int ROWS_AT_ONCE = 2;
  static constexpr int TOGETHER = 8;
  static constexpr int SMALL_BATCH = 4;
  static constexpr int MR = 6;
  static Vector load(const uint16_t *p) { return (Pairs)_mm512_loadu_si512(p); }
  static void store(uint16_t *p, Vector x) { _mm512_storeu_si512(p, (__m512i)x); }
  static Sum add(Sum sum, Vector w, Vector x) { return (Floats)_mm512_dpbf16_ps((__m512)sum, w, x); }
  static Floats finish(Sum sum) { return sum; }
  template <class WeightRow>
  static Vector load_padded(const WeightRow &row, int64_t k) {
    return row.pairs_padded(k);
  }
  template <class WeightRow>
  static void load_run(const WeightRow &row, int64_t k, Vector *w) {
    row.pairs_run(k, w);
  }
};
#endif
