// One registration function per domain.
#pragma once

#include <pybind11/pybind11.h>

namespace deeplab_crf::bindings {

void register_support(pybind11::module_& module);
void register_lattice(pybind11::module_& module);
void register_lattice_batch(pybind11::module_& module);
void register_mean_field(pybind11::module_& module);
void register_mean_field_batch(pybind11::module_& module);
void register_conv(pybind11::module_& module);

}  // namespace deeplab_crf::bindings
