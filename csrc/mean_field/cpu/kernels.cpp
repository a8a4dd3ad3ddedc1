#include "mean_field/cpu/kernels.h"

#include "support/cpu_dispatch.h"

namespace deeplab_crf {

#define DEEPLAB_CRF_DECLARE_TABLES(isa)                            \
  namespace isa {                                                  \
  extern const MeanFieldKernels<float> mean_field_kernels_float;   \
  extern const MeanFieldKernels<double> mean_field_kernels_double; \
  }
DEEPLAB_CRF_DECLARE_TABLES(baseline)
#ifdef DEEPLAB_CRF_X86
DEEPLAB_CRF_DECLARE_TABLES(avx2)
DEEPLAB_CRF_DECLARE_TABLES(avx512)
#endif
#undef DEEPLAB_CRF_DECLARE_TABLES

template <>
const MeanFieldKernels<float>& mean_field_kernels<float>() {
#ifdef DEEPLAB_CRF_X86
  if (active_isa() == Isa::kAvx512) return avx512::mean_field_kernels_float;
  if (active_isa() == Isa::kAvx2) return avx2::mean_field_kernels_float;
#endif
  return baseline::mean_field_kernels_float;
}

template <>
const MeanFieldKernels<double>& mean_field_kernels<double>() {
#ifdef DEEPLAB_CRF_X86
  if (active_isa() == Isa::kAvx512) return avx512::mean_field_kernels_double;
  if (active_isa() == Isa::kAvx2) return avx2::mean_field_kernels_double;
#endif
  return baseline::mean_field_kernels_double;
}

}  // namespace deeplab_crf
