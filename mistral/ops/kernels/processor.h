// What the processor multiplies with. HAVE_* say which instructions this build may use, as the compiler's flags
// (-march) have it; the functions say which of those to use on the processor that the program runs on.
#pragma once

// Pairs of bfloat16: vdpbf16ps of AVX-512 BF16, sums in float32
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAVE_BF16 1
#endif

// Tiles of bfloat16: AMX (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3).
// -DEMULATE_AMX replaces the tile instructions by C++, to test the kernels on a processor without them.
#if defined(HAVE_BF16) && defined(__linux__)
#if defined(EMULATE_AMX) || (defined(__AMX_TILE__) && defined(__AMX_BF16__))
#define HAVE_AMX 1
#endif
#endif

bool amx_available();        // compiled in, and granted to the process by the operating system
bool bf16_pairs_pay();       // compiled in, and faster than float32 products where memory is not the limit
const char *instructions();  // the widest in use: "AMX", "AVX-512 BF16", "AVX-512", "AVX2" or "plain"
