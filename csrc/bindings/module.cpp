#include "bindings/module.h"

#include "support/parallel.h"

PYBIND11_MODULE(_native, module, pybind11::mod_gil_not_used()) {
  module.doc() = "Native kernels of deeplab_crf. Arrays cross as addresses; see _native.pyi.";
  deeplab_crf::watch_forks();
  deeplab_crf::bindings::register_support(module);
  deeplab_crf::bindings::register_lattice(module);
  deeplab_crf::bindings::register_lattice_batch(module);
  deeplab_crf::bindings::register_mean_field(module);
  deeplab_crf::bindings::register_mean_field_batch(module);
  deeplab_crf::bindings::register_conv(module);
}
