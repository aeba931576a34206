// The queries of one key head against runs of keys.
#pragma once
#include "kernels.h"
#include "tiles.h"
#ifdef HAVE_TILES
#include "amx.h"
#endif

// Scores are taken to base 2, and weights relative to an integer above the largest. So a larger score that comes later
// changes them by a power of two, and they round to bfloat16 as they would have in any other order.
constexpr float HIDDEN = -1e30f, LOG2_E = 1.44269504f;

struct Segment {  // keys and values (count, d) at consecutive positions, `stride` elements apart
  const uint16_t *keys, *values;
  int64_t stride, position, count;
};

struct Task {  // tokens [first, first + count) of a row whose tokens start at `start`, for one key head
  int64_t row, start, first, count, head;
};

#ifdef HAVE_TILES
using StreamState = TileConfig;
#else
struct StreamState {
  StreamState() {}
};
#endif

int64_t tokens_at_once(Heads heads);

// queries and out: (count, H, d) from the first of the group's heads on; the first token has position `position`
void stream(const uint16_t *queries, float *out, Heads heads, int64_t position, int64_t count, const Segment *segments,
            int n_segments);

// The same in AMX tiles, where they are available and head_dim is a multiple of 32
void stream_tiled(const uint16_t *queries, float *out, Heads heads, int64_t position, int64_t count,
                  const Segment *segments, int n_segments);
