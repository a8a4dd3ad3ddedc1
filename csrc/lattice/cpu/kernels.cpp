#include "lattice/cpu/kernels.h"

#include "support/cpu_dispatch.h"

namespace deeplab_crf {

#define DEEPLAB_CRF_DECLARE_TABLES(isa)                       \
  namespace isa {                                             \
  extern const LatticeKernels<float> lattice_kernels_float;   \
  extern const LatticeKernels<double> lattice_kernels_double; \
  }
DEEPLAB_CRF_DECLARE_TABLES(baseline)
#ifdef DEEPLAB_CRF_X86
DEEPLAB_CRF_DECLARE_TABLES(avx2)
DEEPLAB_CRF_DECLARE_TABLES(avx512)
#endif
#undef DEEPLAB_CRF_DECLARE_TABLES

template <>
const LatticeKernels<float>& lattice_kernels<float>() {
#ifdef DEEPLAB_CRF_X86
  if (active_isa() == Isa::kAvx512) return avx512::lattice_kernels_float;
  if (active_isa() == Isa::kAvx2) return avx2::lattice_kernels_float;
#endif
  return baseline::lattice_kernels_float;
}

template <>
const LatticeKernels<double>& lattice_kernels<double>() {
#ifdef DEEPLAB_CRF_X86
  if (active_isa() == Isa::kAvx512) return avx512::lattice_kernels_double;
  if (active_isa() == Isa::kAvx2) return avx2::lattice_kernels_double;
#endif
  return baseline::lattice_kernels_double;
}

}  // namespace deeplab_crf
