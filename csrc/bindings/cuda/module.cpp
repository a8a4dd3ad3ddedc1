// The CUDA engine as a module of its own, _cuda, and, compiled for the CPU, _emulated (tests). Sees no CUDA header.
#include "bindings/cuda/fields.h"
#include "support/errors.h"

#ifdef DEEPLAB_CRF_EMULATE_CUDA
#include "support/cuda/emulation.h"
#endif

namespace deeplab_crf::cuda {
namespace {

py::dict build_info() {
  py::dict info;
  info["architectures"] = built_architectures();
  info["compiler"] = built_by();
  return info;
}

py::tuple devices() {
  std::string why;
  const int count = device_count(&why);
  return py::make_tuple(count, why);
}

void register_module(py::module_& module) {
  module.doc() = "CUDA kernels of deeplab_crf. Arrays cross as addresses; see _cuda.pyi.";
  py::register_local_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const InvalidArgument& error) {
      py::set_error(PyExc_ValueError, error.what());
    }
  });
  module.def("build_info", &build_info);
  module.def("devices", &devices);
  register_lattice(module);
  register_mean_field(module);
  register_conv(module);
#ifdef DEEPLAB_CRF_EMULATE_CUDA
  module.def("set_thread_order", &emulation::set_thread_order, py::arg("order"));
#endif
}

}  // namespace
}  // namespace deeplab_crf::cuda

PYBIND11_MODULE(DEEPLAB_CRF_CUDA_MODULE, module, pybind11::mod_gil_not_used()) { deeplab_crf::cuda::register_module(module); }
