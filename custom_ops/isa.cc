#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace kerasdet {
namespace {

Isa Find() {
#if defined(__x86_64__)
  const char* asked = std::getenv("KERASDET_ISA");
  const auto at_most = [asked](const char* name) { return asked != nullptr && std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // such processors have F16C, too
  if (!avx2 || at_most("base")) return Isa::kBase;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return avx512 && !at_most("avx2") ? Isa::kAvx512 : Isa::kAvx2;
#else
  return Isa::kBase;
#endif
}

}  // namespace

Isa BestIsa() {
  static const Isa isa = Find();
  return isa;
}

}  // namespace kerasdet
