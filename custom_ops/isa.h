// Selects the instruction set of the hot loops.
#pragma once

namespace kerasdet {

enum class Isa { kBase, kAvx2, kAvx512 };

// Returns the best set of this processor. The environment variable KERASDET_ISA ("base", "avx2") limits it.
Isa BestIsa();

}  // namespace kerasdet
