#include <pybind11/stl.h>

#include "bindings/batches.h"
#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "lattice/cpu/backward.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;

using Triple = std::tuple<int64_t, int64_t, int64_t>;

// shape (B, N, d), strides in elements.
template <class T>
FeatureBatch<T> make_features(uintptr_t features, const Triple& shape, const Triple& strides) {
  return {pointer<const T>(features), std::get<0>(shape),   std::get<1>(shape),  static_cast<int32_t>(std::get<2>(shape)),
          std::get<0>(strides),       std::get<1>(strides), std::get<2>(strides)};
}

py::tuple sizes_of(uintptr_t structure, int64_t length) {
  const BatchSizes sizes = read_sizes(pointer<const int32_t>(structure), length);
  return py::make_tuple(sizes.num_points, sizes.dims, sizes.num_vertices);
}

template <class T>
void run_filter(const LatticeBatch<T>& lattice, uintptr_t values, uintptr_t out, int64_t channels, uintptr_t workspace,
                bool transpose, int threads) {
  const ReleasedGil released;
  filter<T>({&lattice, pointer<const T>(values), pointer<T>(out), channels, pointer<T>(workspace), transpose}, threads);
}

template <class T>
void run_weight_gradient(const LatticeBatch<T>& lattice, uintptr_t values, uintptr_t grad, uintptr_t out, int64_t channels,
                         uintptr_t workspace, bool transpose, int threads) {
  const ReleasedGil released;
  weight_gradient<T>(
      {&lattice, pointer<const T>(values), pointer<const T>(grad), pointer<T>(out), channels, pointer<T>(workspace), transpose},
      threads);
}

template <class T>
void run_embed_gradient(uintptr_t features, const Triple& shape, const Triple& strides, uintptr_t grad_weights,
                        uintptr_t grad_features, int threads) {
  const ReleasedGil released;
  embed_gradient(make_features<T>(features, shape, strides), pointer<const T>(grad_weights), pointer<T>(grad_features), threads);
}

template <class T>
void register_builder(py::module_& module, const std::string& suffix) {
  using Builder = LatticeBatchBuilder<T>;
  py::class_<Builder>(module, ("LatticeBatch" + suffix).c_str())
      .def(py::init([](uintptr_t features, const Triple& shape, const Triple& strides, int threads) {
             const ReleasedGil released;
             return std::make_unique<Builder>(make_features<T>(features, shape, strides), threads);
           }),
           py::arg("features"), py::arg("shape"), py::arg("strides"), py::arg("threads"))
      .def(
          "embed",
          [](Builder& builder, uintptr_t rows, uintptr_t weights) {
            const ReleasedGil released;
            builder.embed(pointer<int32_t>(rows), pointer<T>(weights));
          },
          py::arg("rows"), py::arg("weights"))
      .def(
          "connect",
          [](Builder& builder, uintptr_t rows, uintptr_t structure) {
            const ReleasedGil released;
            builder.connect(pointer<int32_t>(rows), pointer<int32_t>(structure));
          },
          py::arg("rows"), py::arg("structure"))
      .def_property_readonly("num_vertices", [](const Builder& builder) { return builder.sizes().num_vertices; })
      .def_property_readonly("structure_size", [](const Builder& builder) { return builder.sizes().structure_size(); });
}

template <class T>
void register_lattices(py::module_& module, const std::string& suffix) {
  py::class_<LatticeBatch<T>>(module, ("CheckedLattices" + suffix).c_str())
      .def(py::init([](uintptr_t rows, int64_t num_rows, uintptr_t weights, uintptr_t structure, int64_t length) {
             const ReleasedGil released;
             return std::make_unique<LatticeBatch<T>>(pointer<const int32_t>(rows), num_rows, pointer<const T>(weights),
                                                      pointer<const int32_t>(structure), length);
           }),
           py::arg("rows"), py::arg("num_rows"), py::arg("weights"), py::arg("structure"), py::arg("length"));
}

template <class T>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(
      ("lattice_filter_workspace_" + suffix).c_str(),
      [](const LatticeBatch<T>& lattice, int64_t channels, int threads) { return batch_workspace(lattice, channels, threads, 1); },
      py::arg("lattice"), py::arg("channels"), py::arg("threads"));
  module.def(("lattice_filter_" + suffix).c_str(), &run_filter<T>, py::arg("lattice"), py::arg("values"), py::arg("out"),
             py::arg("channels"), py::arg("workspace"), py::arg("transpose"), py::arg("threads"));
  module.def(("lattice_filter_weight_gradient_" + suffix).c_str(), &run_weight_gradient<T>, py::arg("lattice"), py::arg("values"),
             py::arg("grad"), py::arg("out"), py::arg("channels"), py::arg("workspace"), py::arg("transpose"), py::arg("threads"));
  module.def(("lattice_embed_gradient_" + suffix).c_str(), &run_embed_gradient<T>, py::arg("features"), py::arg("shape"),
             py::arg("strides"), py::arg("grad_weights"), py::arg("grad_features"), py::arg("threads"));
}

}  // namespace

void register_lattice_batch(py::module_& module) {
  register_builder<float>(module, "F32");
  register_builder<double>(module, "F64");
  register_lattices<float>(module, "F32");
  register_lattices<double>(module, "F64");
  module.def("lattice_sizes", &sizes_of, py::arg("structure"), py::arg("length"));
  register_type<float>(module, "f32");
  register_type<double>(module, "f64");
}

}  // namespace deeplab_crf::bindings
