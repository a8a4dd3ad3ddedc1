#include <string>

#include "bindings/cuda/fields.h"
#include "lattice/cuda/backward.h"
#include "support/errors.h"

namespace deeplab_crf::cuda {
namespace {

// Key words, bound of the number of vertices or 0, address of the workspace.
using BuildFields = std::tuple<int, int64_t, uintptr_t>;
template <class T>
Features<T> make_features(const FeatureFields& fields) {
  const auto& [address, shape, strides] = fields;
  check_shape(std::get<0>(shape), std::get<1>(shape), std::get<2>(shape));
  return {pointer<const T>(address), std::get<0>(shape),   std::get<1>(shape),  static_cast<int32_t>(std::get<2>(shape)),
          std::get<0>(strides),      std::get<1>(strides), std::get<2>(strides)};
}

template <class T>
BuildArguments<T> make_build(const FeatureFields& features, uintptr_t rows, uintptr_t weights, const BuildFields& fields) {
  const auto& [key_words, max_vertices, workspace] = fields;
  if (key_words != kNarrowKey && key_words != kMediumKey && key_words != kWideKey) {
    throw InvalidArgument("key_words must be one of KEY_WORDS; got " + std::to_string(key_words));
  }
  if (max_vertices < 0) {
    throw InvalidArgument("max_vertices must not be negative (0: no bound); got " + std::to_string(max_vertices));
  }
  if (max_vertices > 0) check_capacity(max_vertices, max_vertices);
  return {make_features<T>(features), pointer<int32_t>(rows), pointer<T>(weights), key_words, max_vertices,
          pointer<void>(workspace)};
}

py::tuple header_outcome(uintptr_t header, int64_t max_vertices) {
  const BuildOutcome outcome = check_header(pointer<const int32_t>(header), max_vertices);
  return py::make_tuple(outcome.num_vertices, outcome.key_words);
}

int64_t structure_size(const Triple& shape, int64_t capacity) {
  check_shape(std::get<0>(shape), std::get<1>(shape), std::get<2>(shape));
  check_capacity(capacity, 0);
  return LatticeSizes{std::get<0>(shape), std::get<1>(shape), static_cast<int32_t>(std::get<2>(shape)), capacity}.structure_size();
}

int64_t image_begin(const Triple& shape, int64_t length) {
  return sizes_of_structure(std::get<0>(shape), std::get<1>(shape), std::get<2>(shape), length).image_begin_at();
}

template <class T>
void register_build(py::module_& module, const std::string& suffix) {
  module.def(("lattice_build_workspace_" + suffix).c_str(),
             [](const QueueFields& queue, const Triple& shape, int key_words, int64_t max_vertices) {
               const FeatureFields features{0, shape, {0, 0, 0}};
               return build_workspace_size(make_build<T>(features, 0, 0, {key_words, max_vertices, 0}), make_queue(queue));
             },
             py::arg("queue"), py::arg("shape"), py::arg("key_words"), py::arg("max_vertices"));
  module.def(
      ("lattice_embed_" + suffix).c_str(),
      [](const QueueFields& queue, const FeatureFields& features, uintptr_t rows, uintptr_t weights, const BuildFields& build) {
        const ReleasedGil released;
        embed(make_build<T>(features, rows, weights, build), make_queue(queue));
      },
      py::arg("queue"), py::arg("features"), py::arg("rows"), py::arg("weights"), py::arg("build"));
  module.def(("lattice_connect_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& features, uintptr_t rows, uintptr_t structure, int64_t capacity,
                const BuildFields& build) {
               const ReleasedGil released;
               connect(make_build<T>(features, rows, 0, build), pointer<int32_t>(structure), capacity, make_queue(queue));
             },
             py::arg("queue"), py::arg("features"), py::arg("rows"), py::arg("structure"), py::arg("capacity"), py::arg("build"));
}

// Filters values of E by lattices of T.
template <class T, class E>
void register_filter_of(py::module_& module, const std::string& suffix) {
  module.def(("lattice_filter_" + suffix).c_str(),
             [](const QueueFields& queue, const LatticeFields& lattice, const Triple& shape, uintptr_t values, uintptr_t out,
                int64_t channels, uintptr_t workspace, bool transpose) {
               const ReleasedGil released;
               filter<T, E>({make_lattice<T>(lattice, shape), pointer<const E>(values), pointer<E>(out), channels,
                             pointer<T>(workspace), transpose},
                            make_queue(queue));
             },
             py::arg("queue"), py::arg("lattice"), py::arg("shape"), py::arg("values"), py::arg("out"), py::arg("channels"),
             py::arg("workspace"), py::arg("transpose"));
}

template <class T>
void register_filter(py::module_& module, const std::string& suffix) {
  register_filter_of<T, T>(module, suffix);
  module.def(("lattice_filter_workspace_" + suffix).c_str(),
             [](const Triple& shape, int64_t length, int64_t channels) {
               return filter_workspace_size<T>(make_lattice<T>({0, 0, 0, length}, shape).sizes, channels);
             },
             py::arg("shape"), py::arg("length"), py::arg("channels"));
  module.def(
      ("lattice_filter_weight_gradient_" + suffix).c_str(),
      [](const QueueFields& queue, const LatticeFields& lattice, const Triple& shape,
         const std::tuple<uintptr_t, uintptr_t>& vectors, uintptr_t out, int64_t channels, uintptr_t workspace, bool transpose) {
        const ReleasedGil released;
        weight_gradient<T>({make_lattice<T>(lattice, shape), pointer<const T>(std::get<0>(vectors)),
                            pointer<const T>(std::get<1>(vectors)), pointer<T>(out), channels, pointer<T>(workspace), transpose},
                           make_queue(queue));
      },
      py::arg("queue"), py::arg("lattice"), py::arg("shape"), py::arg("vectors"), py::arg("out"), py::arg("channels"),
      py::arg("workspace"), py::arg("transpose"));
  module.def(("lattice_embed_gradient_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& features, uintptr_t grad_weights, uintptr_t grad_features,
                uintptr_t workspace) {
               const ReleasedGil released;
               embed_gradient(make_features<T>(features), pointer<const T>(grad_weights), pointer<T>(grad_features),
                              pointer<void>(workspace), make_queue(queue));
             },
             py::arg("queue"), py::arg("features"), py::arg("grad_weights"), py::arg("grad_features"), py::arg("workspace"));
}

}  // namespace

void register_lattice(py::module_& module) {
  module.attr("HEADER_SIZE") = static_cast<int>(kHeaderSize);
  module.attr("KEY_WORDS") = py::make_tuple(kNarrowKey, kMediumKey, kWideKey);
  module.def("check_header", &header_outcome, py::arg("header"), py::arg("max_vertices"));
  module.def("structure_size", &structure_size, py::arg("shape"), py::arg("capacity"));
  module.def("image_begin", &image_begin, py::arg("shape"), py::arg("length"));
  module.def("lattice_embed_gradient_workspace", &embed_gradient_workspace_size, py::arg("batch"), py::arg("dims"));
  register_build<float>(module, "f32");
  register_build<double>(module, "f64");
  register_filter<float>(module, "f32");
  register_filter<double>(module, "f64");
  register_filter_of<float, Float16>(module, "f16");
  register_filter_of<float, BFloat16>(module, "bf16");
}

}  // namespace deeplab_crf::cuda
