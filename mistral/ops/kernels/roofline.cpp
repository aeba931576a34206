// What this machine can do at most: measured beside the model, so that figures can be given as shares of it.
#include "matmul/microkernel.h"
#include "matmul/matmul_amx.h"
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

namespace {

volatile float sink;  // what is written to it must be computed

constexpr int SUMS = 12;  // more than are in flight, and few enough for the registers of AVX2

// Rounds of `add`, from one vector of sums to the next -> sums added to
template <class Add>
double multiply_vectors(int64_t repeats, Add add) {
  Floats sums[SUMS];
  for (int j = 0; j < SUMS; j++) sums[j] = broadcast(sink + j);  // all alike, they would be computed once
  for (int64_t i = 0; i < repeats; i++)
    for (Floats &s : sums) s = add(s);
  for (int j = 1; j < SUMS; j++) sums[0] += sums[j];
  sink = sum(sums[0]);
  return double(LANES) * SUMS * repeats;
}

double multiply_floats(int64_t repeats) {
  const Floats x = broadcast(sink), y = broadcast(sink);
  return 2 * multiply_vectors(repeats, [=](Floats s) { return s * x + y; });
}

double multiply_pairs([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_PAIRS
  const Pairs x = (Pairs)broadcast(sink), y = (Pairs)broadcast(sink);
  return 4 * multiply_vectors(repeats, [=](Floats s) { return (Floats)_mm512_dpbf16_ps((__m512)s, x, y); });
#else
  return 0;
#endif
}

double multiply_integers([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_INTEGERS
  const Shorts x = (Shorts)broadcast(sink), y = x + 1;
  return 4 * multiply_vectors(repeats, [=](Floats s) { return (Floats)IntegerMath::add((Ints)s, x, y); });
#else
  return 0;
#endif
}

double multiply_tiles([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_TILES
  if (tiles_available()) {
    const TileConfig config;
    alignas(64) static const uint16_t zeros[TILE] = {};
    zero_sums();
    load_weights(zeros, zeros, 64);
    for (int64_t i = 0; i < repeats; i++) multiply_two(zeros, zeros);
    return 4.0 * 2 * 16 * 16 * 32 * repeats;
  }
#endif
  return 0;
}

}  // namespace

// `repeats` rounds of products on every thread, of float32 vectors (way 0), bfloat16 vectors (1), bfloat16 tiles (2)
// or 16-bit integers (3) -> floating-point operations done; 0 where the processor has no such instruction.
extern "C" double multiply_most(int64_t repeats, int way) {
  double done = 0;
#pragma omp parallel reduction(+ : done)
  done += way == 3   ? multiply_integers(repeats)
          : way == 2 ? multiply_tiles(repeats)
          : way == 1 ? multiply_pairs(repeats)
                     : multiply_floats(repeats);
  return done;
}
