#include <pybind11/stl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bindings/module.h"
#include "bindings/released_gil.h"
#include "support/cpu_dispatch.h"
#include "support/errors.h"

namespace deeplab_crf::bindings {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

pybind11::dict build_info() {
  std::vector<std::string> compiled;
  for (Isa isa : compiled_isas()) compiled.emplace_back(isa_name(isa));
  pybind11::dict info;
  info["version"] = DEEPLAB_CRF_VERSION;
  info["compiler"] = compiler();
  info["isa_compiled"] = compiled;
  info["isa_detected"] = isa_name(detected_isa());
  info["isa_active"] = isa_name(active_isa());
  info["cuda_built"] = DEEPLAB_CRF_CUDA_BUILT != 0;
  return info;
}

// Gives memory that was freed back to the system, where the C library would keep it.
void trim_memory() {
#ifdef __GLIBC__
  const ReleasedGil released;
  malloc_trim(0);
#endif
}

}  // namespace

void register_support(pybind11::module_& module) {
  pybind11::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const InvalidArgument& error) {
      pybind11::set_error(PyExc_ValueError, error.what());
    } catch (const Interrupted&) {
      // The signal handler has set the error (KeyboardInterrupt) already.
      if (PyErr_Occurred() == nullptr) pybind11::set_error(PyExc_KeyboardInterrupt, "interrupted");
    }
  });
  module.def("build_info", &build_info);
  module.def("trim_memory", &trim_memory);
}

}  // namespace deeplab_crf::bindings
