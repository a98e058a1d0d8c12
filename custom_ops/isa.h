// Selects the instruction set of the hot loops.
#pragma once

namespace kerasdet {

enum class Isa { kBase, kAvx2, kAvx512 };

// Returns the best instruction set of this processor. The environment variable KERASDET_ISA ("base", "avx2") sets a limit.
Isa BestIsa();

}  // namespace kerasdet
