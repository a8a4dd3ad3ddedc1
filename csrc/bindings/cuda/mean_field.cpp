#include <string>

#include "bindings/cuda/fields.h"
#include "mean_field/cuda/backward.h"
#include "mean_field/cuda/forward.h"
#include "mean_field/cuda/layout.h"

namespace deeplab_crf::cuda {
namespace {

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

// An option that is an address.
template <class T>
T* address(const py::dict& options, const char* name) {
  return pointer<T>(options[name].cast<uintptr_t>());
}

template <class T>
void run_mean_field(const QueueFields& queue, const Triple& shape, uintptr_t unary, uintptr_t out, const py::list& terms,
                    const py::dict& options) {
  InferenceArguments<T> arguments{};
  std::tie(arguments.batch, arguments.num_points, arguments.num_labels) = shape;
  arguments.unary = pointer<const T>(unary);
  arguments.q = pointer<T>(out);
  arguments.order = address<const int32_t>(options, "order");
  for (const py::handle term : terms) arguments.terms.push_back(make_term<T>(term, arguments.batch, arguments.num_points));
  arguments.start_from_q = options["start_from_q"].cast<bool>();
  arguments.log_output = options["log_output"].cast<bool>();
  arguments.iterations = options["iterations"].cast<int>();
  arguments.damping = static_cast<T>(options["damping"].cast<double>());
  arguments.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  arguments.trace = address<T>(options, "trace");
  arguments.trace_slots = options["trace_slots"].cast<int64_t>();
  arguments.beliefs = address<T>(options, "beliefs");
  arguments.steps = address<int32_t>(options, "steps");
  arguments.changes = address<T>(options, "changes");
  arguments.state = address<int32_t>(options, "state");
  const ReleasedGil released;
  mean_field(arguments, make_queue(queue));
}

// (lattice, dims, norm_in, norm_out, kind, compat, compat_gradient, norm_in_gradient, norm_out_gradient, weight_gradient),
// addresses.
template <class T>
DeviceGradientTerm<T> make_gradient_term(const py::handle& description, int64_t batch, int64_t num_points) {
  const auto fields = description.cast<py::tuple>();
  const auto array = [&](int field) { return pointer<T>(fields[field].cast<uintptr_t>()); };
  return {make_lattice<T>(fields[0].cast<LatticeFields>(), {batch, num_points, fields[1].cast<int64_t>()}),
          array(2),
          array(3),
          static_cast<Compatibility>(fields[4].cast<int>()),
          array(5),
          array(6),
          array(7),
          array(8),
          array(9)};
}

template <class T>
DeviceGradientArguments<T> make_gradient(const Triple& shape, const py::list& terms, const py::dict& options) {
  DeviceGradientArguments<T> arguments{};
  std::tie(arguments.batch, arguments.num_points, arguments.num_labels) = shape;
  arguments.order = address<const int32_t>(options, "order");
  for (const py::handle term : terms) arguments.terms.push_back(make_gradient_term<T>(term, arguments.batch, arguments.num_points));
  arguments.iterations = options["iterations"].cast<int>();
  arguments.trace = address<const T>(options, "trace");
  arguments.trace_stride = options["trace_fixed"].cast<bool>() ? 0 : arguments.batch * arguments.num_points * arguments.num_labels;
  arguments.output = address<const T>(options, "output");
  arguments.log_output = options["log_output"].cast<bool>();
  arguments.grad_output = address<const T>(options, "grad_output");
  arguments.grad_unary = address<T>(options, "grad_unary");
  arguments.grad_start = address<T>(options, "grad_start");
  arguments.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  arguments.steps = address<int32_t>(options, "steps");
  arguments.moves = address<T>(options, "moves");
  arguments.workspace = address<void>(options, "workspace");
  return arguments;
}

template <class T>
void run_gradient(const QueueFields& queue, const Triple& shape, const py::list& terms, const py::dict& options) {
  const DeviceGradientArguments<T> arguments = make_gradient<T>(shape, terms, options);
  const ReleasedGil released;
  mean_field_gradient(arguments, make_queue(queue));
}

template <class T>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(("mean_field_workspace_" + suffix).c_str(),
             [](const Triple& shape) {
               const auto& [batch, num_points, num_labels] = shape;
               return batch * num_points * row_stride<T>(num_labels);
             },
             py::arg("shape"));
  module.def(("mean_field_" + suffix).c_str(), &run_mean_field<T>, py::arg("queue"), py::arg("shape"), py::arg("unary"),
             py::arg("out"), py::arg("terms"), py::arg("options"));
  module.def(("mean_field_gradient_workspace_" + suffix).c_str(),
             [](const Triple& shape, const py::list& terms, const py::dict& options) {
               return gradient_workspace_size(make_gradient<T>(shape, terms, options));
             },
             py::arg("shape"), py::arg("terms"), py::arg("options"));
  module.def(("mean_field_gradient_" + suffix).c_str(), &run_gradient<T>, py::arg("queue"), py::arg("shape"), py::arg("terms"),
             py::arg("options"));
}

template <class T>
TransposeArguments<T> make_transpose(const FeatureFields& values, uintptr_t out) {
  const auto& [address, shape, strides] = values;
  const auto& [batch, rows, columns] = shape;
  const auto& [batch_stride, row_stride, column_stride] = strides;
  return {pointer<const T>(address), pointer<T>(out), batch, rows, columns, batch_stride, row_stride, column_stride};
}

template <class T>
void register_transpose(py::module_& module, const std::string& suffix) {
  module.def(("transpose_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& values, uintptr_t out) {
               const ReleasedGil released;
               transpose<T>(make_transpose<T>(values, out), make_queue(queue));
             },
             py::arg("queue"), py::arg("values"), py::arg("out"));
  module.def(("pack_unary_" + suffix).c_str(),
             [](const QueueFields& queue, const FeatureFields& scores, uintptr_t out, double factor, double largest,
                uintptr_t first_wrong) {
               const ReleasedGil released;
               pack_unary<T>({make_transpose<T>(scores, out), static_cast<T>(factor), static_cast<T>(largest),
                              pointer<unsigned long long>(first_wrong)},
                             make_queue(queue));
             },
             py::arg("queue"), py::arg("scores"), py::arg("out"), py::arg("factor"), py::arg("largest"), py::arg("first_wrong"));
}

}  // namespace

void register_mean_field(py::module_& module) {
  register_type<float>(module, "f32");
  register_type<double>(module, "f64");
  register_transpose<float>(module, "f32");
  register_transpose<double>(module, "f64");
}

}  // namespace deeplab_crf::cuda
