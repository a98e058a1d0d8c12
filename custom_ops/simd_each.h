// Compiles KERASDET_SIMD_FILE once for each instruction set, in the namespaces `base`, `avx2` and `avx512`.
//
// The file holds the hot loops and includes nothing: everything that it uses must have been included before. Otherwise
// inline functions of a library would be compiled with instructions that the processor may not have.

#include <cstdint>
#include <cstring>

#include "half.h"
#include "isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define KERASDET_ISA base
#include "simd.h"
#include KERASDET_SIMD_FILE
#undef KERASDET_ISA

#if defined(__x86_64__)

#define KERASDET_AVX2

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define KERASDET_ISA avx2
#include "simd.h"
#include KERASDET_SIMD_FILE
#undef KERASDET_ISA
#pragma GCC pop_options

#define KERASDET_AVX512

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")
#define KERASDET_ISA avx512
#include "simd.h"
#include KERASDET_SIMD_FILE
#undef KERASDET_ISA
#pragma GCC pop_options

#undef KERASDET_AVX512
#undef KERASDET_AVX2

// Calls a function in the namespace of the best instruction set that this processor supports.
#define KERASDET_DISPATCH(...)                                           \
  (::kerasdet::BestIsa() == ::kerasdet::Isa::kAvx512 ? avx512::__VA_ARGS__ \
   : ::kerasdet::BestIsa() == ::kerasdet::Isa::kAvx2 ? avx2::__VA_ARGS__   \
                                                     : base::__VA_ARGS__)
#else
#define KERASDET_DISPATCH(...) base::__VA_ARGS__
#endif
