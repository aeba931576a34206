// Sixteen weight rows make one tile as they lie in the file; sixteen tokens make the other, their pairs of elements
// side by side. A product of two is 16 x 16 sums, a weight row in each line. Few tokens: weights go from memory into
// tiles. Many: a panel of weights is first laid out tile by tile in the second-level cache and met by all tokens there.
#include "tiles.h"

#ifdef HAVE_TILES
#include <algorithm>

#include "amx.h"
#include "vector.h"

namespace {

constexpr int64_t CHUNK = 512;      // tokens that meet one laid-out panel
constexpr int64_t DEPTH = 16;       // tiles along a panel: 512 elements
constexpr int64_t PANEL_PAIRS = 8;  // pairs of tiles across a panel: 256 rows

struct Rows {  // up to 16 rows of a weight
  const uint16_t *data;
  int64_t count;
};
struct Pair {
  Rows a, b;
};

Rows rows_of(Matrix weight, int64_t first) {
  const int64_t count = std::clamp<int64_t>(weight.out - first, 0, 16);
  return {static_cast<const uint16_t *>(weight.data) + (count ? first : 0) * weight.in, count};
}

// x (tokens, in) -> tiles [token tile][depth][pair of elements][token][2], zeros beyond the end
void pack(const float *x, int64_t tokens, int64_t in, uint16_t *packed) {
  const int64_t across = tiles_for(tokens), deep = depth_for(in);
#pragma omp parallel for schedule(static) if (tokens > 16)
  for (int64_t m = 0; m < across; m++)
    for (int64_t k = 0; k < deep; k++) {
      __m512i lines[16];
      const int64_t left = std::min<int64_t>(32, in - 32 * k);
      for (int64_t t = 0; t < 16; t++)
        lines[t] = 16 * m + t < tokens ? narrow(x + (16 * m + t) * in + 32 * k, left) : _mm512_setzero_si512();
      transpose(lines);
      for (int64_t i = 0; i < 16; i++) _mm512_store_si512(packed + (m * deep + k) * TILE + 32 * i, lines[i]);
    }
}

// Rows of a weight, `deep` tiles from tile `first` on -> tiles `step` apart, zeros beyond the end
void lay_out(Rows rows, int64_t in, int64_t first, int64_t deep, uint16_t *tiles, int64_t step) {
  for (int64_t r = 0; r < 16; r++)
    for (int64_t k = 0; k < deep; k++) {
      const int64_t left = std::min<int64_t>(32, in - 32 * (first + k));
      const __mmask32 mask = r >= rows.count ? 0 : left == 32 ? ~0u : (1u << left) - 1;
      const __m512i line = _mm512_maskz_loadu_epi16(mask, rows.data + r * in + 32 * (first + k));
      _mm512_store_si512(tiles + k * step + 32 * r, line);
    }
}

struct Sums {  // of a pair of weight tiles (lines 0 and 1) with a pair of token tiles
  alignas(64) float at[2][2][256];
};

// All of a pair's depth at once, for at most 32 tokens
template <class Finish>
void multiply_few(Pair pair, int64_t in, const uint16_t *packed, int64_t across, Finish finish) {
  const int64_t deep = depth_for(in);
  const bool direct = pair.a.count == 16 && pair.b.count == 16;
  alignas(64) uint16_t spare[2][TILE];
  Sums sums;
  zero_sums();
  for (int64_t k = 0; k < deep; k++) {
    if (direct && 32 * (k + 1) <= in) {
      load_weights(pair.a.data + 32 * k, pair.b.data + 32 * k, 2 * in);
    } else {
      lay_out(pair.a, in, k, 1, spare[0], TILE);
      lay_out(pair.b, in, k, 1, spare[1], TILE);
      written();
      load_weights(spare[0], spare[1], 64);
    }
    if (across == 1)
      multiply_one(packed + k * TILE);
    else
      multiply_two(packed + k * TILE, packed + (deep + k) * TILE);
  }
  store_sums(sums.at[0][0], sums.at[1][0], sums.at[0][1], sums.at[1][1]);
  for (int64_t m = 0; m < across; m++) finish(m, sums.at[0][m], sums.at[1][m]);
}

// Up to PANEL_PAIRS pairs with up to CHUNK tokens
template <class Finish>
void multiply_panel(const Pair *pairs, int64_t n_pairs, int64_t in, const uint16_t *packed, int64_t across,
                    Finish finish) {
  static thread_local Scratch<uint16_t> kept_tiles;
  static thread_local Scratch<Sums> kept_sums;
  uint16_t *tiles = kept_tiles.get(PANEL_PAIRS * DEPTH * 2 * TILE);
  Sums *sums = kept_sums.get(PANEL_PAIRS * CHUNK / 32);
  const int64_t deep = depth_for(in);
  for (int64_t first = 0; first < deep; first += DEPTH) {
    const int64_t here = std::min(DEPTH, deep - first);
    for (int64_t p = 0; p < n_pairs; p++) {
      lay_out(pairs[p].a, in, first, here, tiles + 2 * p * DEPTH * TILE, 2 * TILE);
      lay_out(pairs[p].b, in, first, here, tiles + (2 * p * DEPTH + 1) * TILE, 2 * TILE);
    }
    for (int64_t m = 0; m < across; m += 2) {
      const bool two = m + 1 < across;
      const uint16_t *x = packed + (m * deep + first) * TILE, *x_next = two ? x + deep * TILE : x;
      for (int64_t p = 0; p < n_pairs; p++) {
        Sums &s = sums[m / 2 * n_pairs + p];
        if (first)
          load_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]);
        else
          zero_sums();
        const uint16_t *w = tiles + 2 * p * DEPTH * TILE;
        for (int64_t k = 0; k < here; k++) {
          load_weights(w + 2 * k * TILE, w + (2 * k + 1) * TILE, 64);
          multiply_two(x + k * TILE, x_next + k * TILE);
        }
        store_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]);
        if (first + here == deep)
          for (int64_t i = 0; i <= two; i++) finish(p, m + i, s.at[0][i], s.at[1][i]);
      }
    }
  }
}

// Every pair of tiles of a weight, or of two, with `tokens` packed tokens; finish(pair, token tile, sums, sums)
template <class PairAt, class Finish>
void multiply_all(int64_t n_pairs, PairAt pair_at, int64_t in, const uint16_t *packed, int64_t tokens, Finish finish) {
  const int64_t across = tiles_for(tokens);
#pragma omp parallel
  {
    const TileConfig config;
    if (across <= 2) {
#pragma omp for schedule(static)
      for (int64_t p = 0; p < n_pairs; p++)
        multiply_few(pair_at(p), in, packed, across,
                     [&](int64_t m, const float *a, const float *b) { finish(p, m, a, b); });
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < n_pairs; first += PANEL_PAIRS) {
        Pair pairs[PANEL_PAIRS];
        const int64_t count = std::min(PANEL_PAIRS, n_pairs - first);
        for (int64_t p = 0; p < count; p++) pairs[p] = pair_at(first + p);
        multiply_panel(pairs, count, in, packed, across,
                       [&](int64_t p, int64_t m, const float *a, const float *b) { finish(first + p, m, a, b); });
      }
    }
  }
}

void multiply_packed(const uint16_t *packed, Matrix weight, float *y, int64_t tokens) {
  const auto pair_at = [&](int64_t p) { return Pair{rows_of(weight, 32 * p), rows_of(weight, 32 * p + 16)}; };
  multiply_all((weight.out + 31) / 32, pair_at, weight.in, packed, tokens,
               [&](int64_t p, int64_t m, const float *a, const float *b) {
                 const int64_t count = std::min<int64_t>(16, tokens - 16 * m);
                 for (const float *sums : {a, b}) {
                   const int64_t n = 32 * p + (sums == b ? 16 : 0), left = std::clamp<int64_t>(weight.out - n, 0, 16);
                   if (left) store_transposed(sums, y + 16 * m * weight.out + n, weight.out, count, left);
                 }
               });
}

}  // namespace

bool tiles_available() {
  static const bool granted = request_tiles();
  return granted;
}

void tiled_linear(const float *x, Matrix weight, float *y, int64_t tokens) {
  static thread_local Scratch<uint16_t> kept;
  for (int64_t t = 0; t < tokens; t += CHUNK) {
    const int64_t count = std::min(CHUNK, tokens - t);
    uint16_t *packed = kept.get(tiles_for(count) * depth_for(weight.in) * TILE);
    pack(x + t * weight.in, count, weight.in, packed);
    multiply_packed(packed, weight, y + t * weight.out, count);
  }
}

void tiled_feed_forward(const float *x, Matrix w1, Matrix w2, Matrix w3, float *y, int64_t tokens) {
  static thread_local Scratch<uint16_t> kept, kept_hidden;
  const int64_t deep = depth_for(w2.in);
  for (int64_t t = 0; t < tokens; t += CHUNK) {
    const int64_t count = std::min(CHUNK, tokens - t), across = tiles_for(count);
    uint16_t *packed = kept.get(across * depth_for(w1.in) * TILE), *hidden = kept_hidden.get(across * deep * TILE);
    pack(x + t * w1.in, count, w1.in, packed);
    for (int64_t m = 0; m < across; m++) std::fill_n(hidden + (m * deep + deep - 1) * TILE, TILE, uint16_t(0));
    const auto pair_at = [&](int64_t p) { return Pair{rows_of(w1, 16 * p), rows_of(w3, 16 * p)}; };
    multiply_all((w1.out + 15) / 16, pair_at, w1.in, packed, count,
                 [&](int64_t p, int64_t m, const float *gates, const float *ups) {
                   // two lines of sums are a line of the next product's tokens
                   uint16_t *to = hidden + (m * deep + p / 2) * TILE + p % 2 * 256;
                   for (int64_t n = 0; n < 16; n += 2) {
                     const Floats even = silu(load(gates + 16 * n)) * load(ups + 16 * n);
                     const Floats odd = silu(load(gates + 16 * n + 16)) * load(ups + 16 * n + 16);
                     _mm512_store_si512(to + 16 * n, interleave(even, odd));
                   }
                 });
    multiply_packed(hidden, w2, y + t * w2.out, count);
  }
}

#else

bool tiles_available() { return false; }
void tiled_linear(const float *, Matrix, float *, int64_t) {}
void tiled_feed_forward(const float *, Matrix, Matrix, Matrix, float *, int64_t) {}

#endif
