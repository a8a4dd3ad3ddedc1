// Which instruction set the CPU kernels use. The kernel sources are compiled once per set (see CMakeLists.txt), each into
// a namespace of its own; a table per domain picks the compiled set once.
#pragma once

#include <string>
#include <vector>

namespace deeplab_crf {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// "baseline", "avx2" or "avx512".
const char* isa_name(Isa isa);

// The best set that this processor and this build both have.
Isa detected_isa();

// The sets this build contains, in ascending order.
std::vector<Isa> compiled_isas();

// detected_isa(), or what the environment variable DEEPLAB_CRF_CPU names. Throws InvalidArgument if it names a set that does
// not exist, is not in the build or not in the processor. Read once, at the first call.
Isa active_isa();

}  // namespace deeplab_crf
