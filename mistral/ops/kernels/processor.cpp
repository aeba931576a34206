// What the processor multiplies with, found out once at run time.
#include "processor.h"

#include "simd.h"
#ifdef HAVE_AMX
#include "amx.h"
#endif

bool amx_available() {
#ifdef HAVE_AMX
  static const bool granted = request_tiles();
  return granted;
#endif
  return false;
}

// vdpbf16ps takes four times as long as a product of floats on Intel's processors, and as long as one on AMD's.
bool bf16_pairs_pay() {
#ifdef HAVE_BF16
  static const bool pay = __builtin_cpu_is("amd");
  return pay;
#endif
  return false;
}

const char *instructions() {
  if (amx_available()) return "AMX";
  if (bf16_pairs_pay()) return "AVX-512 BF16";
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return "NEON i8mm";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "NEON dot product";
#endif
  return LANES == 16 ? "AVX-512" : LANES == 8 ? "AVX2" : "plain";
}
