// The CUDA engine as a module of its own, _cuda, and, compiled for the CPU, _emulated (tests). Sees no CUDA header.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/pointers.h"
#include "lattice/cuda/gradients.h"
#include "mean_field/cuda/inference.h"
#include "mean_field/cuda/pack_labels.h"
#include "support/errors.h"

#ifdef DEEPLAB_CRF_EMULATE_CUDA
#include "support/cuda/emulation.h"
#endif

namespace deeplab_crf::cuda {
namespace {

namespace py = pybind11;
using bindings::pointer;

using Triple = std::tuple<int64_t, int64_t, int64_t>;
// Device, and stream as an address.
using QueueFields = std::tuple<int, uintptr_t>;
// Address, shape (B, N, d), strides in elements.
using FeatureFields = std::tuple<uintptr_t, Triple, Triple>;
// Key words, bound of the number of vertices or 0, address of the workspace.
using BuildFields = std::tuple<int, int64_t, uintptr_t>;
// Addresses of rows, weights and structure; elements of the structure.
using LatticeFields = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t>;

Queue make_queue(const QueueFields& fields) { return {std::get<0>(fields), pointer<void>(std::get<1>(fields))}; }

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

template <class T>
LatticeView<T> make_lattice(const LatticeFields& fields, const Triple& shape) {
  const auto& [rows, weights, structure, length] = fields;
  return {sizes_of_structure(std::get<0>(shape), std::get<1>(shape), std::get<2>(shape), length), pointer<const int32_t>(rows),
          pointer<const T>(weights), pointer<const int32_t>(structure)};
}

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
        const py::gil_scoped_release release;
        embed(make_build<T>(features, rows, weights, build), make_queue(queue));
      },
      py::arg("queue"), py::arg("features"), py::arg("rows"), py::arg("weights"), py::arg("build"));
  module.def(("lattice_connect_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& features, uintptr_t rows, uintptr_t structure, int64_t capacity,
                const BuildFields& build) {
               const py::gil_scoped_release release;
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
               const py::gil_scoped_release release;
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
        const py::gil_scoped_release release;
        weight_gradient<T>({make_lattice<T>(lattice, shape), pointer<const T>(std::get<0>(vectors)),
                            pointer<const T>(std::get<1>(vectors)), pointer<T>(out), channels, pointer<T>(workspace), transpose},
                           make_queue(queue));
      },
      py::arg("queue"), py::arg("lattice"), py::arg("shape"), py::arg("vectors"), py::arg("out"), py::arg("channels"),
      py::arg("workspace"), py::arg("transpose"));
  module.def(("lattice_embed_gradient_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& features, uintptr_t grad_weights, uintptr_t grad_features,
                uintptr_t workspace) {
               const py::gil_scoped_release release;
               embed_gradient(make_features<T>(features), pointer<const T>(grad_weights), pointer<T>(grad_features),
                              pointer<void>(workspace), make_queue(queue));
             },
             py::arg("queue"), py::arg("features"), py::arg("grad_weights"), py::arg("grad_features"), py::arg("workspace"));
}

// (lattice, dims, norm_in, norm_out, kind, compat, workspace), addresses.
template <class T>
Term<T> make_term(const py::handle& description, int64_t batch, int64_t num_points) {
  const auto [lattice, dims, norm_in, norm_out, kind, compat, workspace] =
      description.cast<std::tuple<LatticeFields, int64_t, uintptr_t, uintptr_t, int, uintptr_t, uintptr_t>>();
  return {make_lattice<T>(lattice, {batch, num_points, dims}),
          pointer<const T>(norm_in),
          pointer<const T>(norm_out),
          static_cast<Compatibility>(kind),
          pointer<const T>(compat),
          pointer<T>(workspace)};
}

template <class T>
void run_mean_field(const QueueFields& queue, const Triple& shape, uintptr_t unary, uintptr_t out, const py::list& terms,
                    const py::dict& options) {
  const auto address = [&](const char* name) { return options[name].cast<uintptr_t>(); };
  InferenceArguments<T> arguments{};
  std::tie(arguments.batch, arguments.num_points, arguments.num_labels) = shape;
  arguments.unary = pointer<const T>(unary);
  arguments.q = pointer<T>(out);
  arguments.order = pointer<const int32_t>(address("order"));
  for (const py::handle term : terms) arguments.terms.push_back(make_term<T>(term, arguments.batch, arguments.num_points));
  arguments.start_from_q = options["start_from_q"].cast<bool>();
  arguments.log_output = options["log_output"].cast<bool>();
  arguments.iterations = options["iterations"].cast<int>();
  arguments.damping = static_cast<T>(options["damping"].cast<double>());
  arguments.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  arguments.trace = pointer<T>(address("trace"));
  arguments.trace_slots = options["trace_slots"].cast<int64_t>();
  arguments.beliefs = pointer<T>(address("beliefs"));
  arguments.steps = pointer<int32_t>(address("steps"));
  arguments.changes = pointer<T>(address("changes"));
  arguments.state = pointer<int32_t>(address("state"));
  const py::gil_scoped_release release;
  mean_field(arguments, make_queue(queue));
}

template <class T>
void register_mean_field(py::module_& module, const std::string& suffix) {
  module.def(("mean_field_workspace_" + suffix).c_str(),
             [](const Triple& shape) {
               const auto& [batch, num_points, num_labels] = shape;
               return batch * num_points * row_stride<T>(num_labels);
             },
             py::arg("shape"));
  module.def(("mean_field_" + suffix).c_str(), &run_mean_field<T>, py::arg("queue"), py::arg("shape"), py::arg("unary"),
             py::arg("out"), py::arg("terms"), py::arg("options"));
}

template <class T>
void register_layout(py::module_& module, const std::string& suffix) {
  module.def(("transpose_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& values, uintptr_t out, double factor, uintptr_t first_wrong) {
               const auto& [address, shape, strides] = values;
               const auto& [batch, rows, columns] = shape;
               const auto& [batch_stride, row_stride, column_stride] = strides;
               const py::gil_scoped_release release;
               transpose<T>({pointer<const T>(address), pointer<T>(out), batch, rows, columns, batch_stride, row_stride,
                             column_stride, static_cast<T>(factor), pointer<unsigned long long>(first_wrong)},
                            make_queue(queue));
             },
             py::arg("queue"), py::arg("values"), py::arg("out"), py::arg("factor"), py::arg("first_wrong"));
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
  module.attr("HEADER_SIZE") = static_cast<int>(kHeaderSize);
  module.attr("KEY_WORDS") = py::make_tuple(kNarrowKey, kMediumKey, kWideKey);
  module.def("build_info", &build_info);
  module.def("devices", &devices);
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
  register_layout<float>(module, "f32");
  register_layout<double>(module, "f64");
  register_mean_field<float>(module, "f32");
  register_mean_field<double>(module, "f64");
#ifdef DEEPLAB_CRF_EMULATE_CUDA
  module.def("set_thread_order", &emulation::set_thread_order, py::arg("order"));
#endif
}

}  // namespace
}  // namespace deeplab_crf::cuda

PYBIND11_MODULE(DEEPLAB_CRF_CUDA_MODULE, module, pybind11::mod_gil_not_used()) { deeplab_crf::cuda::register_module(module); }
