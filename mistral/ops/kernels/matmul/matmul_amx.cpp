// The matrix product in AMX tiles: rows of W (out, in) with x (T, in) in bfloat16 -> y (T, rows).
//
// Sixteen weight rows by 32 elements are a tile A; sixteen tokens by 32 elements, transposed, are a tile B; their
// product is 16 x 16 sums with a weight row in each line (amx.h). All loops multiply two tiles of each at a time. From
// 33 tokens on, weights are packed into a panel of tiles in the second-level cache, once for all tokens. For fewer
// tokens, bfloat16 rows are loaded as tiles from where they lie, and other weights are packed two tiles at a time. A
// sum is formed in the same order either way.
#include "matmul/matmul_amx.h"

#include "processor.h"

#ifdef HAVE_AMX
#include <algorithm>

#include "amx.h"
#include "matmul/weight_rows.h"

namespace {

constexpr int64_t PANEL_DEPTH = 16;    // tiles along a row of a panel: 512 elements
constexpr int64_t PREFETCH_DEPTH = 8;  // tiles along a row that are prefetched ahead

struct Sums {  // of two weight tiles with two token tiles: [weight tile][token tile][weight row * 16 + token]
  alignas(64) float at[2][2][256];
};

// Activations: [token tile][depth tile][part][pair of elements][token][2]. The parts are one, or high and low.
struct TokenTiles {
  const uint16_t *data;
  int64_t tokens, count, depth, parts;

  explicit TokenTiles(const Activations &a)
      : data(static_cast<const uint16_t *>(a.data)),
        tokens(a.tokens),
        count(tiles_for(a.tokens)),
        depth(depth_for(a.in)),
        parts(a.layout == HIGH_LOW_TILES ? 2 : 1) {}
  const uint16_t *at(int64_t m, int64_t k) const { return data + (m * depth + k) * parts * TILE; }
};

// 16 rows of a weight from `first` on, `depth` tiles from tile k on -> tiles `step` elements apart; zeros for rows from
// `end` on and beyond the ends of rows
template <class WeightRow>
void pack_weights(Matrix w, int64_t first, int64_t end, int64_t k, int64_t depth, uint16_t *tiles, int64_t step) {
  for (int64_t r = 0; r < 16; r++) {
    if (first + r >= end) {
      for (int64_t i = 0; i < depth; i++) _mm512_store_si512(tiles + i * step + 32 * r, _mm512_setzero_si512());
      continue;
    }
    const WeightRow row(w, first + r);
    row.template prefetch<3>(32 * (k + depth), 32 * depth);  // this row's part of the next panel
    for (int64_t i = 0; i < depth; i++)
      _mm512_store_si512(tiles + i * step + 32 * r, (__m512i)row.pairs_padded(32 * (k + i)));
  }
}

// Adds to the sums: `depth` tiles of two groups of 16 weight rows, `step` elements apart, times token tiles m and m + 1
// from depth tile k on. `stride`: bytes from line to line of a weight tile.
void multiply_along(const uint16_t *weights, const uint16_t *others, int64_t step, int64_t stride, const TokenTiles &x,
                    int64_t m, int64_t k, int64_t depth) {
  const int64_t next = std::min(m + 1, x.count - 1);
  for (int64_t i = 0; i < depth; i++) {
    load_weights(weights + i * step, others + i * step, stride);
    for (int64_t part = 0; part < x.parts; part++)
      multiply_2x2(x.at(m, k + i) + part * TILE, x.at(next, k + i) + part * TILE);
  }
}

void begin_sums(Sums &s, bool first) {
  if (first) return zero_sums();
  load_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]);
}

void end_sums(Sums &s) { store_sums(s.at[0][0], s.at[1][0], s.at[0][1], s.at[1][1]); }

// Weight rows [first, end) with all tokens, PANEL_DEPTH tiles of each row at a time, packed into a panel of pairs of
// tiles: sums[token tile / 2 * pairs + pair of weight tiles]
template <class WeightRow>
void multiply_panel(Matrix w, int64_t first, int64_t end, const TokenTiles &x, Sums *sums) {
  static thread_local Scratch<uint16_t> panel_buffer;
  const int64_t pairs = (end - first + 31) / 32;
  uint16_t *panel = panel_buffer.get(pairs * PANEL_DEPTH * 2 * TILE);
  for (int64_t k = 0; k < x.depth; k += PANEL_DEPTH) {
    const int64_t depth = std::min(PANEL_DEPTH, x.depth - k);
    for (int64_t p = 0; p < 2 * pairs; p++)
      pack_weights<WeightRow>(w, first + 16 * p, end, k, depth, panel + (p / 2 * PANEL_DEPTH * 2 + p % 2) * TILE,
                              2 * TILE);
    compiler_barrier();
    for (int64_t m = 0; m < x.count; m += 2)
      for (int64_t p = 0; p < pairs; p++) {
        Sums &s = sums[m / 2 * pairs + p];
        const uint16_t *both = panel + p * PANEL_DEPTH * 2 * TILE;
        begin_sums(s, k == 0);
        multiply_along(both, both + TILE, 2 * TILE, 64, x, m, k, depth);
        end_sums(s);
      }
  }
}

// 32 rows of bfloat16 weights where they lie, with up to 32 tokens. The rows that follow are prefetched on the way.
void multiply_in_place(const uint16_t *rows, int64_t in, const TokenTiles &x, Sums &sums) {
  zero_sums();
  for (int64_t k = 0; k < x.depth; k++) {
    const int64_t later = k + PREFETCH_DEPTH;
    const int64_t ahead = later < x.depth ? 32 * later : 32 * in + 32 * (later - x.depth);
    for (int64_t r = 0; r < 32; r++) __builtin_prefetch(rows + r * in + ahead);
    multiply_along(rows + 32 * k, rows + 16 * in + 32 * k, 0, 2 * in, x, 0, k, 1);
  }
  end_sums(sums);
}

// Weight rows [first, end) with up to 32 tokens, 32 rows at a time, so that packed tiles stay in the first-level cache
template <class WeightRow>
void multiply_few(Matrix w, int64_t first, int64_t end, const TokenTiles &x, Sums *sums) {
  for (int64_t p = 0; first + 32 * p < end; p++) {
    const int64_t from = first + 32 * p;
    if (std::is_same_v<WeightRow, DenseWeightRow<Bf16>> && from + 32 <= end && w.in % 32 == 0)
      multiply_in_place(static_cast<const uint16_t *>(w.data) + from * w.in, w.in, x, sums[p]);
    else
      multiply_panel<WeightRow>(w, from, std::min(from + 32, end), x, sums + p);
  }
}

// Rows [first, first + rows) of a weight with all tokens -> y[t * stride + i]
template <class WeightRow>
void multiply_tiles(Matrix w, int64_t first, int64_t rows, const TokenTiles &x, float *y, int64_t stride) {
  static thread_local Scratch<Sums> sum_buffer;
  const int64_t pairs = (rows + 31) / 32, end = first + rows;
  Sums *sums = sum_buffer.get(pairs * ((x.count + 1) / 2));
  if (x.count <= 2)
    multiply_few<WeightRow>(w, first, end, x, sums);
  else
    multiply_panel<WeightRow>(w, first, end, x, sums);
  for (int64_t n = 0; n < rows; n += 16) {
    const int64_t left = std::min<int64_t>(16, rows - n);
    alignas(64) float factors[16] = {};
    for (int64_t i = 0; i < left; i++) factors[i] = WeightRow(w, first + n + i).factor();
    for (int64_t m = 0; m < x.count; m++)
      store_transposed(sums[m / 2 * pairs + n / 32].at[n / 16 % 2][m % 2], factors, y + 16 * m * stride + n, stride,
                       std::min<int64_t>(16, x.tokens - 16 * m), left);
  }
}

}  // namespace

int64_t tiled_bytes(Layout layout, int64_t tokens, int64_t in) {
  return tiles_for(tokens) * depth_for(in) * TILE * (layout == HIGH_LOW_TILES ? 4 : 2);
}

void pack_tiles(const Activations &a, int64_t k, const float *x, int64_t x_stride, int64_t count) {
  const TokenTiles tiles(a);
  for (int64_t m = 0; m < tiles.count; m++)
    for (int64_t i = 0; i < count; i += 32) {
      alignas(64) float rows[16][32];
      const int64_t left = std::min<int64_t>(32, count - i), tokens = std::min<int64_t>(16, a.tokens - 16 * m);
      if (left < 32 || tokens < 16) memset(rows, 0, sizeof rows);
      for (int64_t t = 0; t < tokens; t++) memcpy(rows[t], x + (16 * m + t) * x_stride + i, left * 4);
      for (int64_t part = 0; part < tiles.parts; part++) {
        __m512i lines[16];
        for (int64_t t = 0; t < 16; t++) {
          lines[t] = pack_bf16(rows[t]);
          for (int64_t j = 0; j < 32 && part + 1 < tiles.parts; j += LANES)  // what rounding left
            store(rows[t] + j, load(rows[t] + j) - round_bf16(load(rows[t] + j)));
        }
        transpose(lines);
        uint16_t *to = const_cast<uint16_t *>(tiles.at(m, (k + i) / 32)) + part * TILE;
        for (int64_t line = 0; line < 16; line++) _mm512_store_si512(to + 32 * line, lines[line]);
      }
    }
}

void multiply_rows_amx(const Activations &x, Matrix w, int64_t first, int64_t rows, float *y, int64_t stride) {
  const TileConfig config;
  const TokenTiles tiles(x);
  if (w.type == FLOAT8) return multiply_tiles<WeightRowFloat8>(w, first, rows, tiles, y, stride);
  multiply_tiles<DenseWeightRow<Bf16>>(w, first, rows, tiles, y, stride);
}

#else

// Never called: amx_available() is false.
int64_t tiled_bytes(Layout, int64_t, int64_t) { return 0; }
void pack_tiles(const Activations &, int64_t, const float *, int64_t, int64_t) {}
void multiply_rows_amx(const Activations &, Matrix, int64_t, int64_t, float *, int64_t) {}

#endif
