// The two limits of the machine's roofline (Williams et al., Communications of the ACM, 2009): bytes read from memory,
// and products of vectors or tiles held in registers. The caller takes the time, so that the speed of a model can be
// given as a share of them.
#include "all_threads.h"
#include "blocks/dot_neon.h"
#include "matmul/arithmetic.h"
#include "processor.h"
#ifdef HAVE_AMX
#include "amx.h"
#endif

// Reads `count` floats on all threads, in blocks of 2^18; returns their sum, so that none is left out.
extern "C" float read_memory(const float *data, int64_t count) {
  const AllThreads threads;
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

volatile float sink;  // written so that the compiler must compute what is written

// Independent sums: more than the products in flight at a time, and few enough for the 16 registers of AVX2
constexpr int SUMS = 12;

// `repeats` rounds of s = add(s) over all vectors of sums -> number of lanes added to
template <class Add>
double add_in_registers(int64_t repeats, Add add) {
  Floats sums[SUMS];
  for (int j = 0; j < SUMS; j++) sums[j] = broadcast(sink + j);  // different, or the compiler would compute one
  for (int64_t i = 0; i < repeats; i++)
    for (Floats &s : sums) s = add(s);
  for (int j = 1; j < SUMS; j++) sums[0] += sums[j];
  sink = sum(sums[0]);
  return double(LANES) * SUMS * repeats;
}

double peak_floats(int64_t repeats) {
  const Floats x = broadcast(sink), y = broadcast(sink);
  return 2 * add_in_registers(repeats, [=](Floats s) { return s * x + y; });
}

double peak_pairs([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_BF16
  const Pairs x = (Pairs)broadcast(sink), y = (Pairs)broadcast(sink);
  return 4 * add_in_registers(repeats, [=](Floats s) { return (Floats)_mm512_dpbf16_ps((__m512)s, x, y); });
#else
  return 0;
#endif
}

#ifdef __AVX2__
// sum + products of bytes u (without a sign) and x, four added
inline __m256i add_fours(__m256i sum, __m256i u, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(sum, u, x);
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, u, x);
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)));
#endif
}
#endif

// Products of bytes, added in 32 bits. With AVX2, numbers of few bits that are first added in 16 can go beyond this.
double peak_integers([[maybe_unused]] int64_t repeats) {
#ifdef __AVX2__
  const __m256i x = _mm256_set1_epi32(int32_t(sink) + 1);
  __m256i sums[SUMS];
  for (int j = 0; j < SUMS; j++) sums[j] = _mm256_set1_epi32(int32_t(sink) + j);
  for (int64_t i = 0; i < repeats; i++)
    for (__m256i &s : sums) s = add_fours(s, s, x);  // which no compiler can do once for all rounds
  for (int j = 1; j < SUMS; j++) sums[0] = _mm256_add_epi32(sums[0], sums[j]);
  sink = float(_mm256_extract_epi32(sums[0], 0));
  return 64.0 * SUMS * repeats;
#elif defined(HAVE_NEON_DOT)
#ifdef __ARM_FEATURE_MATMUL_INT8
  constexpr double OPERATIONS = 64;
  const auto add = [](Ints s, Ints x) { return (Ints)vmmlaq_s32((int32x4_t)s, (int8x16_t)s, (int8x16_t)x); };
#else
  constexpr double OPERATIONS = 32;
  const auto add = [](Ints s, Ints x) { return add_fours(s, (Bytes)s, (Bytes)x); };
#endif
  const Ints x = Ints{} + int32_t(sink) + 1;
  Ints sums[SUMS];
  for (int j = 0; j < SUMS; j++) sums[j] = Ints{} + int32_t(sink) + j;
  for (int64_t i = 0; i < repeats; i++)
    for (Ints &s : sums) s = add(s, x);
  for (int j = 1; j < SUMS; j++) sums[0] += sums[j];
  sink = float(sums[0][0]);
  return OPERATIONS * SUMS * repeats;
#else
  return 0;
#endif
}

double peak_tiles([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_AMX
  if (amx_available()) {
    const TileConfig config;
    alignas(64) static const uint16_t zeros[TILE] = {};
    zero_sums();
    load_weights(zeros, zeros, 64);
    for (int64_t i = 0; i < repeats; i++) multiply_2x2(zeros, zeros);
    return 4.0 * 2 * 16 * 16 * 32 * repeats;
  }
#endif
  return 0;
}

double peak_byte_tiles([[maybe_unused]] int64_t repeats) {
#ifdef HAVE_AMX
  if (amx_available()) {
    const TileConfig config(shapes_for_bytes(64));
    alignas(64) static const uint16_t zeros[TILE] = {};
    zero_sums();
    tile_load(4, zeros, 64);
    tile_load(5, zeros, 64);
    tile_load(6, zeros, 64);
    for (int64_t i = 0; i < repeats; i++) {
      tile_multiply_bytes(0, 4, 5);
      tile_multiply_bytes(1, 4, 6);
      tile_multiply_bytes(2, 4, 5);
      tile_multiply_bytes(3, 4, 6);
    }
    return 4.0 * 2 * 16 * 16 * 64 * repeats;
  }
#endif
  return 0;
}

}  // namespace

// `repeats` rounds of products on every thread, of float32 vectors (way 0), bfloat16 vectors (1), bfloat16 tiles (2), or
// 8-bit integers in vectors of at most 256 bits (3) or tiles (4) -> operations done, a product and an addition being
// two; 0 where there is no such instruction.
extern "C" double multiply_in_registers(int64_t repeats, int way) {
  const AllThreads threads;
  double done = 0;
#pragma omp parallel reduction(+ : done)
  done += way == 4   ? peak_byte_tiles(repeats)
          : way == 3 ? peak_integers(repeats)
          : way == 2 ? peak_tiles(repeats)
          : way == 1 ? peak_pairs(repeats)
                     : peak_floats(repeats);
  return done;
}
