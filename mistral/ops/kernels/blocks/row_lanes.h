// The product of weights in blocks with tokens, in vectors of which each lane belongs to a row of the weight: words of
// rows (row_blocks.h) are multiplied with words of tokens that are broadcast, T tokens at a time. A lane sums for its
// own row, and nothing has to be added across lanes. The definition of the product is in activations.h.
//
// Few tokens multiply rows as they are unpacked in registers. The rows are far apart: each is a sequential stream that
// hardware prefetchers follow. For many, a chunk of rows is unpacked into the first-level cache, and all tokens pass
// over it (as in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
#pragma once
#include <algorithm>

#include "blocks/activations.h"
#include "blocks/row_blocks.h"
#include "scratch.h"

#ifdef HAVE_LANES
// The lower half of one word, and that of another above it
template <class Ints>
inline Ints pairs(Ints low, Ints high) {
  return (low & 0xffff) | high << 16;
}

// What a product needs of the blocks of L rows
template <class F, int L>
struct BlockOfRows {
  using X = Lanes<L>;
  using Ints = typename X::Ints;
  using Floats = typename X::Floats;
  static constexpr bool OFFSET = HAS_SIGN<F> && VNNI;  // 128 is added to numbers that have a sign
  static constexpr int LARGER = OFFSET ? 128 : EXCESS<F>;  // what has been added to a number
  static constexpr int GROUPS = F::WEIGHTS / F::GROUP;
  static constexpr bool MAGNITUDES = false;

  const UnpackedRows<F, L> rows;
  ALWAYS_INLINE explicit BlockOfRows(const RowBlocks<L> &from) : rows(from) {}

  ALWAYS_INLINE Floats scale() const { return rows.scale(); }
  // A minimum of 32 weights is added, of 256 subtracted
  ALWAYS_INLINE Floats minimum() const { return rows.minimum_scale() * (F::FACTORS ? -1.f : 1.f); }
  ALWAYS_INLINE Ints minimum_pairs(int i) const { return pairs(rows.minimum(2 * i), rows.minimum(2 * i + 1)); }
  ALWAYS_INLINE Ints factor_pairs(int i) const { return pairs(rows.factor(2 * i), rows.factor(2 * i + 1)); }
  // Of group g, as `add_group` takes it: twice in a word where sums of 16 bits are multiplied with it
  ALWAYS_INLINE Ints factor(int g) const {
    const Ints s = rows.factor(g);
    return VNNI || HAS_SIGN<F> ? s : pairs(s, s);
  }
  template <bool FEW, class Use>
  ALWAYS_INLINE void each(Use use) const {
    rows.template each<FEW>([&](int g, Ints *words) __attribute__((always_inline)) {
      if constexpr (OFFSET)
#pragma GCC unroll 8
        for (int i = 0; i < F::GROUP / 4; i++) words[i] ^= int32_t(0x80808080);
      use(g, words);
    });
  }
};

// The same, unpacked once and kept. Without VNNI, numbers with a sign are kept as magnitudes |w| and as signs, bytes of
// ones where w is negative: then w * x is |w| * (x ^ sign), and |w| too small where w is negative (there x ^ sign is
// -x - 1). What all of a group are too small by does not depend on x.
template <class F, int L>
struct KeptBlockOfRows {
  using X = Lanes<L>;
  using B = BlockOfRows<F, L>;
  using Ints = typename B::Ints;
  using Floats = typename B::Floats;
  static constexpr int LARGER = B::LARGER, GROUPS = B::GROUPS, WORDS = F::GROUP / 4;
  static constexpr bool MAGNITUDES = HAS_SIGN<F> && !VNNI;

  Ints words[GROUPS * WORDS], factors[F::FACTORS ? GROUPS : 0], excess[F::FACTORS && LARGER ? GROUPS / 2 : 0];
  Ints signs[MAGNITUDES ? GROUPS * WORDS : 0], too_small[MAGNITUDES ? GROUPS : 0];
  Ints minima[F::FACTORS && F::MINIMA ? 4 : 0];
  Floats d, dmin[F::MINIMA ? 1 : 0];

  ALWAYS_INLINE void keep(const B &from) {
    d = from.scale();
    if constexpr (F::MINIMA) dmin[0] = from.minimum();
    if constexpr (F::FACTORS)
#pragma GCC unroll 16
      for (int g = 0; g < GROUPS; g++) factors[g] = from.factor(g);
    if constexpr (F::FACTORS && LARGER > 0)
#pragma GCC unroll 8
      for (int i = 0; i < GROUPS / 2; i++) excess[i] = from.factor_pairs(i);
    if constexpr (F::FACTORS && F::MINIMA)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) minima[i] = from.minimum_pairs(i);
    from.template each<false>([&](int g, const Ints *group) __attribute__((always_inline)) {
      if constexpr (MAGNITUDES) return keep_magnitudes(g, group);
#pragma GCC unroll 8
      for (int i = 0; i < WORDS; i++) words[g * WORDS + i] = group[i];
    });
  }
  ALWAYS_INLINE void keep_magnitudes(int g, const Ints *group) {
    Ints sum = {};
#pragma GCC unroll 8
    for (int i = 0; i < WORDS; i++) {
      const Ints negative = X::negative_bytes(group[i]);
      signs[g * WORDS + i] = negative;
      words[g * WORDS + i] = X::subtract_bytes(group[i] ^ negative, negative);
      const Ints pairs_of_bytes = X::multiply_pairs(words[g * WORDS + i] & negative, Ints{} + 0x01010101);
      sum = X::add_pairs(sum, pairs_of_bytes, Ints{} + 0x10001);
    }
    too_small[g] = sum;
  }
  Floats scale() const { return d; }
  Floats minimum() const { return dmin[0]; }
  Ints minimum_pairs(int i) const { return minima[i]; }
  Ints factor_pairs(int i) const { return excess[i]; }
  Ints factor(int g) const {
    if constexpr (F::FACTORS) return factors[g];
    return Ints{};
  }
  template <bool, class Use>
  ALWAYS_INLINE void each(Use use) const {
    for (int g = 0; g < GROUPS; g++) use(g, words + g * WORDS);
  }
};

// T tokens that lie side by side, and L rows
template <class F, int L, int T>
struct RowLanes {
  using X = Lanes<L>;
  using Ints = typename X::Ints;
  using Floats = typename X::Floats;
  static constexpr int LARGER = BlockOfRows<F, L>::LARGER, WORDS = F::GROUP / 4;

  // Of a block: integers, words of their sums, and scales
  const char *x;
  const int32_t *sums;
  const float *scales;

  RowLanes(const Activations &a, int64_t group, int64_t k)
      : x(static_cast<const char *>(a.data) + group * a.stride + k * T),
        sums(reinterpret_cast<const int32_t *>(a.sums + group * a.sums_step) + k / F::WEIGHTS * WORDS_OF_SUMS * T),
        scales(a.scales + group * a.scale_step + k / F::WEIGHTS * T) {}

  static constexpr int64_t WORDS_OF_SUMS = F::FACTORS ? LARGE_SUMS : 1;

  void next() { x += F::WEIGHTS * T, sums += WORDS_OF_SUMS * T, scales += T; }

  static Ints word_at(const char *from, int w, int t) { return X::broadcast_word(from + (w * T + t) * 4); }

  // totals[t] += products of the words of a block's group with the integers at `from`
  template <class Block>
  static ALWAYS_INLINE void add_group(const Block &block, int g, const Ints *words, const char *from,
                                      Ints (&totals)[T]) {
    [[maybe_unused]] const Ints ones = Ints{} + 0x10001, factor = block.factor(g);
    if constexpr (VNNI)
      add_each_word(Ints{}, factor, totals, [&](Ints sum, int w, int t) __attribute__((always_inline)) {
        return X::add_bytes(sum, words[w], from + (w * T + t) * 4);
      });
    else if constexpr (Block::MAGNITUDES)
      add_each_word(block.too_small[g], factor, totals, [&](Ints sum, int w, int t) __attribute__((always_inline)) {
        const Ints x = word_at(from, w, t) ^ block.signs[g * WORDS + w];
        return X::add_pairs(sum, X::multiply_pairs(words[w], x), ones);
      });
    else if constexpr (HAS_SIGN<F>)
      add_each_word(Ints{}, factor, totals, [&](Ints sum, int w, int t) __attribute__((always_inline)) {
        return X::add_pairs(sum, X::multiply_signed_pairs(words[w], word_at(from, w, t)), ones);
      });
    else
      add_sums_of_pairs(words, from, factor, totals);
  }

  // Words are added one by one, in 32 bits: without VNNI products of a pair that have a sign fit into 16, and no sum of
  // them. The first is added to `start`.
  template <class Add>
  static ALWAYS_INLINE void add_each_word(Ints start, Ints factor, Ints (&totals)[T], const Add &add) {
    Ints products[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) products[t] = F::FACTORS ? start : totals[t] + start;
#pragma GCC unroll 8
    for (int w = 0; w < WORDS; w++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) products[t] = add(products[t], w, t);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) totals[t] = F::FACTORS ? totals[t] + products[t] * factor : products[t];
  }

  // Sums in 16 bits, of as many words as fit
  static ALWAYS_INLINE void add_sums_of_pairs(const Ints *words, const char *from, Ints factor, Ints (&totals)[T]) {
    constexpr int SPAN = BITS<F> < 5 ? 8 : BITS<F> < 6 ? 4 : 2;
#pragma GCC unroll 4
    for (int first = 0; first < WORDS; first += SPAN) {
      Ints products[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) products[t] = X::multiply_pairs(words[first], word_at(from, first, t));
#pragma GCC unroll 8
      for (int w = first + 1; w < std::min(first + SPAN, WORDS); w++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) products[t] = X::add_bytes(products[t], words[w], from + (w * T + t) * 4);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        totals[t] = X::add_pairs(totals[t], products[t], F::FACTORS ? factor : Ints{} + 0x10001);
    }
  }

  // to[t] += the pair `by` times word i of the sums
  ALWAYS_INLINE void add_sums(Ints (&to)[T], Ints by, int64_t i) const {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) to[t] = X::add_pairs(to[t], by, X::broadcast_word(sums + i * T + t));
  }

  // y[t] += the product with the block; fetch(g) is called before group g is multiplied
  template <class Block, class Fetch>
  ALWAYS_INLINE void multiply(const Block &block, Floats (&y)[T], const Fetch &fetch) const {
    Ints totals[T] = {};
    if constexpr (LARGER > 0 && !F::FACTORS) {
      add_sums(totals, Ints{} + (-LARGER & 0xffff), 0);
    } else if constexpr (LARGER > 0) {
#pragma GCC unroll 8
      for (int i = 0; i < Block::GROUPS / 2; i++)
        add_sums(totals, block.factor_pairs(i), F::GROUP == 16 ? 4 + i : i);  // see LARGE_SUMS
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) totals[t] *= -LARGER;
    }
    block.template each<(T < 3)>([&](int g, const Ints *words) __attribute__((always_inline)) {
      fetch(g);
      add_group(block, g, words, x + g * F::GROUP * T, totals);
    });
    const Floats scale = block.scale();
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) y[t] = X::fused(X::to_floats(totals[t]), scale * scales[t], y[t]);
    if constexpr (F::MINIMA) {
      Ints minima[T] = {};
      if constexpr (F::FACTORS) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) add_sums(minima, block.minimum_pairs(i), i);
      } else {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) minima[t] = X::broadcast_word(sums + t);
      }
      const Floats minimum = block.minimum();
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) y[t] = X::fused(X::to_floats(minima[t]), minimum * scales[t], y[t]);
    }
  }
};

// Fetches blocks that come later along the rows, a few rows at a time: more misses at once than a core can have would
// keep it from what it is to do now
template <class F, int L>
struct FetchAhead {
  static constexpr int64_t FAR = 1536, NEAR = F::BYTES > 192 ? 256 : 0;  // bytes along a row; found by trial
  static constexpr int GROUPS = F::WEIGHTS / F::GROUP;
  const RowBlocks<L> &rows;
  int64_t block;

  ALWAYS_INLINE void operator()(int g) const {
    if (F::BYTES < 32 && block % 2) return;  // the line is that of the block before
#pragma GCC unroll 16
    for (int r = g * L / GROUPS; r < (g + 1) * L / GROUPS; r++) {
      rows.template fetch<2>(r, FAR, F::BYTES);
      if (NEAR) rows.template fetch<1>(r, NEAR, F::BYTES);
    }
  }
};

// y[t * stride + r * y_step] of all tokens for the first `stored` of L rows
template <class F, int L, int T>
void multiply_streams(const Activations &a, RowBlocks<L> rows, float *y, int64_t stride, int64_t y_step,
                      int64_t stored) {
  const RowBlocks<L> begin = rows;
  for (int64_t first = 0; first < a.tokens; first += T) {
    typename Lanes<L>::Floats sums[T] = {};
    RowLanes<F, L, T> tokens(a, first / T, 0);
    rows = begin;
    for (int64_t b = 0; b < a.in / F::WEIGHTS; b++) {
      tokens.multiply(BlockOfRows<F, L>(rows), sums, FetchAhead<F, L>{rows, b});
      tokens.next();
      rows.advance(F::BYTES);
    }
    for (int64_t t = 0; t < std::min<int64_t>(T, a.tokens - first); t++)
      for (int64_t r = 0; r < stored; r++) y[(first + t) * stride + r * y_step] = sums[t][r];
  }
}

// Few tokens. `left` rows that are not enough for a vector are computed with some that were there already, or each
// alone.
template <class F, int L, int T>
void multiply_few(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t rows, float *y,
                  int64_t stride) {
  const int64_t apart = rows / L, left = rows % L;
  for (int64_t n = 0; n < apart; n++)
    multiply_streams<F, L, T>(a, {weights + n * row_bytes, apart * row_bytes}, y + n, stride, apart, L);
  if (left && apart)
    return multiply_streams<F, L, T>(a, {weights + (rows - L) * row_bytes, row_bytes}, y + rows - L, stride, 1, L);
  for (int64_t n = 0; n < left; n++)
    multiply_streams<F, L, T>(a, {weights + n * row_bytes, 0}, y + n, stride, 1, 1);
}

// Many tokens. The chunk of all tokens stays in the second-level cache while some strips of L rows are multiplied
// with it.
template <class F, int L, int T>
void multiply_many(const Activations &a, const uint8_t *weights, int64_t row_bytes, int64_t strips, float *y,
                   int64_t stride) {
  constexpr int64_t CHUNK = 512, BLOCKS = CHUNK / F::WEIGHTS;  // columns
  using Floats = typename Lanes<L>::Floats;
  static thread_local Scratch<Floats> buffer;
  Floats *results = buffer.get(strips * a.tokens);  // [strip][token]
  KeptBlockOfRows<F, L> kept[BLOCKS];
  for (int64_t k = 0; k < a.in; k += CHUNK) {
    const int64_t blocks = std::min(CHUNK, a.in - k) / F::WEIGHTS;
    for (int64_t s = 0; s < strips; s++) {
      RowBlocks<L> rows{weights + s * L * row_bytes + k / F::WEIGHTS * F::BYTES, row_bytes};
      for (int r = 0; r < L; r++) rows.template fetch<2>(r, BLOCKS * F::BYTES, BLOCKS * F::BYTES);
      for (int64_t b = 0; b < blocks; b++, rows.advance(F::BYTES)) kept[b].keep(BlockOfRows<F, L>(rows));
      for (int64_t first = 0; first < a.tokens; first += T) {
        const int64_t size = std::min<int64_t>(T, a.tokens - first) * sizeof(Floats);
        Floats sums[T] = {}, *to = results + s * a.tokens + first;
        if (k > 0) memcpy(sums, to, size);
        RowLanes<F, L, T> tokens(a, first / T, k);
        for (int64_t b = 0; b < blocks; b++, tokens.next()) tokens.multiply(kept[b], sums, [](int) {});
        memcpy(to, sums, size);
      }
    }
  }
  for (int64_t t = 0; t < a.tokens; t++)
    for (int64_t s = 0; s < strips; s++) memcpy(y + t * stride + s * L, results + s * a.tokens + t, sizeof(Floats));
}

// y[t * stride + i], see multiply_rows_blocks
template <class F, int L, int T>
void multiply_row_lanes(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  constexpr int64_t STRIPS = 64 / L;
  const int64_t row_bytes = w.in / F::WEIGHTS * F::BYTES;
  const uint8_t *weights = static_cast<const uint8_t *>(w.data) + first * row_bytes;
  if constexpr (T == MOST_LANES)
    if (a.tokens > FEW_GROUPS * T && rows >= L) {
      for (int64_t n = 0; n + L <= rows; n += STRIPS * L)
        multiply_many<F, L, T>(a, weights + n * row_bytes, row_bytes, std::min(STRIPS, (rows - n) / L), y + n, stride);
      const int64_t last = rows - L;  // those that are left over, with some that were there already
      if (rows % L) multiply_many<F, L, T>(a, weights + last * row_bytes, row_bytes, 1, y + last, stride);
      return;
    }
  multiply_few<F, L, T>(a, weights, row_bytes, rows, y, stride);
}

template <class F>
void multiply_lanes(const Activations &a, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  constexpr int L = LANES;
  switch (a.lanes) {
    case 1: return multiply_row_lanes<F, L, 1>(a, w, first, rows, y, stride);
    case 2: return multiply_row_lanes<F, L, 2>(a, w, first, rows, y, stride);
    case 3: return multiply_row_lanes<F, L, 3>(a, w, first, rows, y, stride);
    case 4: return multiply_row_lanes<F, L, 4>(a, w, first, rows, y, stride);
    default:
      if constexpr (MOST_LANES == 8) {
        if (a.lanes == 6) return multiply_row_lanes<F, L, 6>(a, w, first, rows, y, stride);
        return multiply_row_lanes<F, L, 8>(a, w, first, rows, y, stride);
      }
  }
}
#endif
