#include "mean_field/cpu/kernels.h"

#include "mean_field/cpu/backward_kernels.h"
#include "support/kernel_tables.h"

namespace deeplab_crf {

DEEPLAB_CRF_KERNEL_TABLE(MeanFieldKernels, mean_field_kernels)
DEEPLAB_CRF_KERNEL_TABLE(GradientKernels, gradient_kernels)

}  // namespace deeplab_crf
