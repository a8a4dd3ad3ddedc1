#include "conv/cpu/kernels.h"

#include "support/kernel_tables.h"

namespace deeplab_crf {

DEEPLAB_CRF_DECLARE_FLOAT_TABLES(conv::ProductKernels, product_kernels)
DEEPLAB_CRF_DECLARE_FLOAT_TABLES(conv::WinogradKernels, winograd_kernels)

namespace conv {

DEEPLAB_CRF_FLOAT_KERNEL_TABLE(ProductKernels, product_kernels)
DEEPLAB_CRF_FLOAT_KERNEL_TABLE(WinogradKernels, winograd_kernels)

}  // namespace conv
}  // namespace deeplab_crf
