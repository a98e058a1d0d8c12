// The data types that kernels receive as launch parameters.
#pragma once

#include "../half.h"

namespace kerasdet {

enum Type { kFloat, kHalf, kBFloat16 };

inline Type TypeOf(const float*) { return kFloat; }
inline Type TypeOf(const Half*) { return kHalf; }
inline Type TypeOf(const BFloat16*) { return kBFloat16; }

}  // namespace kerasdet
