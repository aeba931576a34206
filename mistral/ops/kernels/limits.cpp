// What this machine can do at most: measured beside the model, so that figures can be given as shares of it.
#include "tiles.h"
#include "vector.h"
#ifdef HAVE_TILES
#include "amx.h"
#endif

// Reads `count` floats on all threads; the caller takes the time.
extern "C" float read_memory(const float *data, int64_t count) {
  float total = 0;
  constexpr int64_t STEP = 8 * LANES;
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (int64_t block = 0; block < count / (1 << 18); block++) {
    const float *from = data + block * (1 << 18);
    Floats sums[8] = {};
    for (int64_t i = 0; i + STEP <= 1 << 18; i += STEP)
      for (int j = 0; j < 8; j++) sums[j] += load(from + i + j * LANES);
    for (int j = 1; j < 8; j++) sums[0] += sums[j];
    total += sum(sums[0]);
  }
  return total;
}

// `repeats` rounds of bfloat16 products on every thread -> floating-point operations done; 0 without tiles.
extern "C" double multiply_most([[maybe_unused]] int64_t repeats) {
  double done = 0;
#ifdef HAVE_TILES
  if (!tiles_available()) return 0;
#pragma omp parallel reduction(+ : done)
  {
    const TileConfig config;
    alignas(64) static const uint16_t zeros[TILE] = {};
    zero_sums();
    load_weights(zeros, zeros, 64);
    for (int64_t i = 0; i < repeats; i++) multiply_two(zeros, zeros);
    done += 4.0 * 2 * 16 * 16 * 32 * repeats;
  }
#endif
  return done;
}
