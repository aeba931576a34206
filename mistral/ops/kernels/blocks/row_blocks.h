// The blocks of L rows at the same column, unpacked side by side: a vector has a word, four of a block's numbers, of
// every row. 16 bytes of each row are loaded and transposed in registers; what formats.h says of a block is then done
// for all rows at once. UnpackedRows<F, L> for each format F:
//
//   factor(g), minimum(g)     s and m of group g, as words
//   scale(), minimum_scale()  d, and dmin where the format has one
//   each<FEW>(use)            calls use(g, words) for each group of F::GROUP numbers; FEW: with few tokens to come
//
// Numbers have a sign where HAS_SIGN<F>; the others have none and are too large by EXCESS<F>.
#pragma once
#include "blocks/formats.h"
#include "blocks/lanes.h"

#ifdef HAVE_LANES
template <int L>
struct RowBlocks {
  using X = Lanes<L>;
  using Ints = typename X::Ints;
  using Floats = typename X::Floats;
  const uint8_t *fours[L / 4];  // blocks of every fourth row
  int64_t step, three_steps;    // bytes from row to row

  RowBlocks(const uint8_t *first, int64_t step) : step(step), three_steps(3 * step) {
    for (int i = 0; i < L / 4; i++) fours[i] = first + i * 4 * step;
  }
  // To blocks so many bytes further on. A pointer that GCC cannot compute from another keeps it from holding one for
  // each of 16 rows, for which there are no registers.
  ALWAYS_INLINE void advance(int64_t bytes) {
#pragma GCC unroll 4
    for (const uint8_t *&four : fours) {
      four += bytes;
      if (L == 16) asm("" : "+r"(four));
    }
  }
  ALWAYS_INLINE const uint8_t *row(int r) const { return fours[r / 4] + (r % 4 == 3 ? three_steps : r % 4 * step); }

  // words[i] = word i of the 16 bytes at `at`
  ALWAYS_INLINE void load(int64_t at, Ints (&words)[4]) const {
    Ints rows[4];  // each of every fourth row
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) rows[r] = X::load_quarters([&](int i) { return row(4 * i + r) + at; });
    const Ints a = X::low_words(rows[0], rows[1]), b = X::high_words(rows[0], rows[1]);
    const Ints c = X::low_words(rows[2], rows[3]), d = X::high_words(rows[2], rows[3]);
    words[0] = X::low_pairs(a, c), words[1] = X::high_pairs(a, c);
    words[2] = X::low_pairs(b, d), words[3] = X::high_pairs(b, d);
  }

  // The float16 at `at`. Put together in general registers, for the others are what there is most to do for
  ALWAYS_INLINE Floats half_floats(int64_t at) const {
    typedef uint64_t Two __attribute__((vector_size(16)));
    Two halves[L / 8] = {};
#pragma GCC unroll 16
    for (int r = 0; r < L; r++) halves[r / 8][r / 4 % 2] |= uint64_t(number<uint16_t>(r, at)) << r % 4 * 16;
    return X::half_floats((__m128i)halves[0], (__m128i)halves[L / 8 - 1]);
  }

  // The word at `at`
  ALWAYS_INLINE Ints words(int64_t at) const {
    typename VectorTypes<L>::Pairs pairs = {};
#pragma GCC unroll 16
    for (int r = 0; r < L; r++) pairs[r / 2] |= uint64_t(number<uint32_t>(r, at)) << r % 2 * 32;
    return (Ints)pairs;
  }

  template <class Number>
  ALWAYS_INLINE Number number(int r, int64_t at) const {
    Number n;
    memcpy(&n, row(r) + at, sizeof n);
    return n;
  }

  // Row r, from `ahead` bytes further on, into a cache of this level. Assembly stays where it is written: GCC would move
  // the fetches of all rows to one place, where they wait for each other.
  template <int LEVEL>
  ALWAYS_INLINE void fetch(int r, int64_t ahead, int64_t bytes) const {
    for (const uint8_t *from = row(r) + ahead, *end = from + bytes; from < end; from += 64)
      if constexpr (LEVEL == 1)
        asm volatile("prefetcht0 %0" : : "m"(*from));
      else
        asm volatile("prefetcht1 %0" : : "m"(*from));
  }
};

template <class F>
constexpr bool HAS_SIGN = std::is_same_v<F, Q8_0> || std::is_same_v<F, IQ4_NL> || std::is_same_v<F, IQ4_XS>;
template <class F>
constexpr int EXCESS = std::is_same_v<F, Q4_0> ? 8 : std::is_same_v<F, Q5_0> ? 16 : std::is_same_v<F, Q6_K> ? 32 : 0;
template <class F>
constexpr int BITS = HAS_SIGN<F> ? 8
                     : std::is_same_v<F, Q6_K> ? 6
                     : std::is_same_v<F, Q5_0> || std::is_same_v<F, Q5_1> || std::is_same_v<F, Q5_K> ? 5
                                                                                                     : 4;

template <class Ints>
inline Ints low_nibbles(Ints words) {
  return words & 0x0f0f0f0f;
}
// Where `MATRIX`, by the units that multiply. They have no time left where many tokens multiply a large block.
template <bool MATRIX, class Ints>
inline Ints high_nibbles(Ints words) {
#if defined(__GFNI__) && defined(__AVX512F__)
  if constexpr (MATRIX && sizeof(Ints) == 64) {
    const __m512i shift_by_four = _mm512_set1_epi64(0x1020408000000000);  // a matrix of 8 x 8 bits, for each byte
    return (Ints)_mm512_gf2p8affine_epi64_epi8((__m512i)words, shift_by_four, 0);
  }
#endif
  return words >> 4 & 0x0f0f0f0f;
}

template <class F, int L>
struct UnpackedRows;

template <int L>
struct SmallRows {  // blocks of 32 weights without factors
  using X = Lanes<L>;
  using Ints = typename X::Ints;
  const RowBlocks<L> &rows;
  ALWAYS_INLINE explicit SmallRows(const RowBlocks<L> &rows) : rows(rows) {}
  ALWAYS_INLINE Ints factor(int) const { return Ints{}; }
  ALWAYS_INLINE Ints minimum(int) const { return Ints{}; }
  ALWAYS_INLINE typename X::Floats scale() const { return rows.half_floats(0); }
  ALWAYS_INLINE typename X::Floats minimum_scale() const { return rows.half_floats(2); }  // where there are any
  ALWAYS_INLINE void nibbles(int64_t at, Ints (&words)[8]) const {
    Ints packed[4];
    rows.load(at, packed);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) words[i] = low_nibbles(packed[i]), words[4 + i] = high_nibbles<true>(packed[i]);
  }
  ALWAYS_INLINE void add_fifth_bits(Ints bits, Ints (&words)[8]) const {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) words[i] |= X::spread_bits(bits, i);
  }
};


template <int L>
struct UnpackedRows<Q8_0, L> : SmallRows<L> {
  using SmallRows<L>::SmallRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    typename SmallRows<L>::Ints words[2][4];
    this->rows.load(2, words[0]), this->rows.load(18, words[1]);
    use(0, &words[0][0]);
  }
};

template <class Rows, int64_t AT>
struct NibbleRows : Rows {  // 16 bytes of nibbles at AT
  using Rows::Rows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    typename Rows::Ints words[8];
    this->nibbles(AT, words);
    use(0, words);
  }
};

template <int L>
struct UnpackedRows<Q4_0, L> : NibbleRows<SmallRows<L>, 2> {
  using NibbleRows<SmallRows<L>, 2>::NibbleRows;
};

template <int L>
struct UnpackedRows<Q4_1, L> : NibbleRows<SmallRows<L>, 4> {
  using NibbleRows<SmallRows<L>, 4>::NibbleRows;
};

template <int L>
struct UnpackedRows<Q5_0, L> : SmallRows<L> {
  using SmallRows<L>::SmallRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    typename SmallRows<L>::Ints words[8];
    this->nibbles(6, words);
    this->add_fifth_bits(this->rows.words(2), words);
    use(0, words);
  }
};

template <int L>
struct UnpackedRows<Q5_1, L> : SmallRows<L> {
  using SmallRows<L>::SmallRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    typename SmallRows<L>::Ints words[8];
    this->nibbles(8, words);
    this->add_fifth_bits(this->rows.words(4), words);
    use(0, words);
  }
};

template <int L>
struct UnpackedRows<IQ4_NL, L> : SmallRows<L> {
  using SmallRows<L>::SmallRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    typename SmallRows<L>::Ints words[8];
    this->nibbles(2, words);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) words[i] = Lanes<L>::look_up(LEVELS, words[i]);
    use(0, words);
  }
};

template <int L>
struct UnpackedRows<IQ4_XS, L> {
  using Ints = typename Lanes<L>::Ints;
  const RowBlocks<L> &rows;
  Ints first[4];
  ALWAYS_INLINE explicit UnpackedRows(const RowBlocks<L> &rows) : rows(rows) { rows.load(0, first); }
  ALWAYS_INLINE Ints factor(int g) const {
    return ((first[1] >> 4 * g & 15) | (first[0] >> (16 + 2 * g) & 3) << 4) - 32;
  }
  ALWAYS_INLINE Ints minimum(int) const { return Ints{}; }
  ALWAYS_INLINE typename Lanes<L>::Floats scale() const { return Lanes<L>::half_floats(first[0]); }
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      Ints packed[4], words[8];
      rows.load(8 + 16 * g, packed);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        words[i] = Lanes<L>::look_up(LEVELS, low_nibbles(packed[i]));
        words[4 + i] = Lanes<L>::look_up(LEVELS, high_nibbles<FEW>(packed[i]));
      }
      use(g, words);
    }
  }
};

template <int L>
struct SixBitRows {  // factors and minima of six bits, see six_bit_factors()
  using Ints = typename Lanes<L>::Ints;
  const RowBlocks<L> &rows;
  Ints header, factors[2], minima[2];  // a byte for each group
  ALWAYS_INLINE explicit SixBitRows(const RowBlocks<L> &rows) : rows(rows) {
    Ints words[4];
    rows.load(0, words);
    const Ints a = words[1], b = words[2], c = words[3];
    header = words[0];
    factors[0] = a & 0x3f3f3f3f, factors[1] = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    minima[0] = b & 0x3f3f3f3f, minima[1] = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
  }
  ALWAYS_INLINE Ints factor(int g) const { return factors[g / 4] >> 8 * (g % 4) & 255; }
  ALWAYS_INLINE Ints minimum(int g) const { return minima[g / 4] >> 8 * (g % 4) & 255; }
  ALWAYS_INLINE typename Lanes<L>::Floats scale() const { return Lanes<L>::half_floats(header); }
  ALWAYS_INLINE typename Lanes<L>::Floats minimum_scale() const { return Lanes<L>::half_floats(header >> 16); }
};

template <int L>
struct UnpackedRows<Q4_K, L> : SixBitRows<L> {
  using SixBitRows<L>::SixBitRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    using Ints = typename Lanes<L>::Ints;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Ints packed[2][4], words[8];
      this->rows.load(16 + 32 * j, packed[0]), this->rows.load(32 + 32 * j, packed[1]);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) words[i] = low_nibbles(packed[i / 4][i % 4]);
      use(2 * j, words);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) words[i] = high_nibbles<FEW>(packed[i / 4][i % 4]);
      use(2 * j + 1, words);
    }
  }
};

template <int L>
struct UnpackedRows<Q5_K, L> : SixBitRows<L> {
  using SixBitRows<L>::SixBitRows;
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    using Ints = typename Lanes<L>::Ints;
    Ints fifth[2][4];
    this->rows.load(16, fifth[0]), this->rows.load(32, fifth[1]);
    const auto bits = [&](int i, int g) {  // bit g of each byte as bit 4
      const Ints all = fifth[i / 4][i % 4];
      return (g < 4 ? all << (4 - g) : all >> (g - 4)) & 0x10101010;
    };
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      Ints packed[2][4], words[8];
      this->rows.load(48 + 32 * j, packed[0]), this->rows.load(64 + 32 * j, packed[1]);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) words[i] = low_nibbles(packed[i / 4][i % 4]) | bits(i, 2 * j);
      use(2 * j, words);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) words[i] = high_nibbles<FEW>(packed[i / 4][i % 4]) | bits(i, 2 * j + 1);
      use(2 * j + 1, words);
    }
  }
};

template <int L>
struct UnpackedRows<Q6_K, L> {
  using Ints = typename Lanes<L>::Ints;
  const RowBlocks<L> &rows;
  Ints factors[4];
  ALWAYS_INLINE explicit UnpackedRows(const RowBlocks<L> &rows) : rows(rows) { rows.load(192, factors); }
  ALWAYS_INLINE Ints factor(int g) const { return factors[g / 4] << (24 - 8 * (g % 4)) >> 24; }
  ALWAYS_INLINE Ints minimum(int) const { return Ints{}; }
  ALWAYS_INLINE typename Lanes<L>::Floats scale() const { return rows.half_floats(Q6_K::BYTES - 2); }
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) {
      const int half = quarter / 2, i = quarter % 2;
      Ints upper[4], packed[4], words[4];
      rows.load(128 + 32 * half + 16 * i, upper);
#pragma GCC unroll 2
      for (int part = 0; part < 2; part++) {
        rows.load(64 * half + 32 * part + 16 * i, packed);
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++)
          words[w] = low_nibbles(packed[w]) | (upper[w] << (4 - 2 * part) & 0x30303030);
        use(8 * half + 2 * part + i, words);
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) words[w] = high_nibbles<FEW>(packed[w]) | (upper[w] >> 2 * part & 0x30303030);
        use(8 * half + 4 + 2 * part + i, words);
      }
    }
  }
};
#endif
