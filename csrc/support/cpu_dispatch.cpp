#include "support/cpu_dispatch.h"

#include <cstdlib>

#include "support/errors.h"

namespace deeplab_crf {
namespace {

bool processor_has(Isa isa) {
#ifdef DEEPLAB_CRF_X86
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && processor_has(Isa::kAvx2);
  }
#endif
  return isa == Isa::kBaseline;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

Isa choose_isa() {
  const char* wish = std::getenv("DEEPLAB_CRF_CPU");
  if (wish == nullptr || *wish == '\0') return detected_isa();
  std::vector<Isa> usable;
  for (Isa isa : compiled_isas()) {
    if (!processor_has(isa)) continue;
    if (std::string(wish) == isa_name(isa)) return isa;
    usable.push_back(isa);
  }
  throw InvalidArgument("DEEPLAB_CRF_CPU must name an instruction set that this build and this processor have (" + names(usable) +
                        "); got '" + wish + "'. Unset it to let the library choose");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<Isa> compiled_isas() {
#ifdef DEEPLAB_CRF_X86
  return {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};
#else
  return {Isa::kBaseline};
#endif
}

Isa detected_isa() {
  Isa best = Isa::kBaseline;
  for (Isa isa : compiled_isas()) {
    if (processor_has(isa)) best = isa;
  }
  return best;
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace deeplab_crf
