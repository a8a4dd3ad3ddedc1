// What embed.cpp gives to the kernel table of its instruction set.
#pragma once

#include "lattice/cpu/kernels.h"

namespace deeplab_crf::DEEPLAB_CRF_ISA {

void embed(const FeatureView<float>& features, int64_t begin, int count, SimplexBlock<float> out);
void embed(const FeatureView<double>& features, int64_t begin, int count, SimplexBlock<double> out);
void embed_wide(const FeatureView<float>& features, int64_t begin, int count, SimplexBlock<float> out);

}  // namespace deeplab_crf::DEEPLAB_CRF_ISA
