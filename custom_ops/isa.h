// The instruction set that the hot loops run on.
#pragma once

namespace kerasdet {

enum class Isa { kBase, kAvx2, kAvx512 };

// What this processor has, or less where the environment variable KERASDET_ISA ("base", "avx2") asks for less.
Isa BestIsa();

}  // namespace kerasdet
