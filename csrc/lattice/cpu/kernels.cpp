#include "lattice/cpu/kernels.h"

#include "lattice/cpu/backward_kernels.h"
#include "support/kernel_tables.h"

namespace deeplab_crf {

DEEPLAB_CRF_KERNEL_TABLE(LatticeKernels, lattice_kernels)
DEEPLAB_CRF_KERNEL_TABLE(LatticeGradientKernels, lattice_gradient_kernels)

}  // namespace deeplab_crf
