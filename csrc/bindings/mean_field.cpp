#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "mean_field/cpu/forward.h"
#include "mean_field/cpu/layout.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;

// Asked between two iterations, so that Ctrl-C ends a long inference. context: the ReleasedGil of the call.
bool keep_going(void* context) { return static_cast<ReleasedGil*>(context)->run_signal_handlers(); }

// A term as Python describes it: (lattice view, norm_in, norm_out, kind, compat, values 0, values 1), addresses all.
template <class T>
KernelTerm<T> make_term(const py::handle& description) {
  const auto fields = description.cast<py::tuple>();
  return {fields[0].cast<const LatticeView<T>*>(),
          pointer<const T>(fields[1].cast<uintptr_t>()),
          pointer<const T>(fields[2].cast<uintptr_t>()),
          static_cast<Compatibility>(fields[3].cast<int>()),
          pointer<const T>(fields[4].cast<uintptr_t>()),
          {pointer<T>(fields[5].cast<uintptr_t>()), pointer<T>(fields[6].cast<uintptr_t>())}};
}

template <class T>
py::tuple run(int64_t num_points, int64_t num_labels, uintptr_t unary, uintptr_t q, const py::list& terms,
              const py::dict& options) {
  MeanFieldArguments<T> arguments;
  arguments.num_points = num_points;
  arguments.num_labels = num_labels;
  arguments.unary = pointer<const T>(unary);
  arguments.q = pointer<T>(q);
  arguments.order = pointer<const int32_t>(options["order"].cast<uintptr_t>());
  for (const py::handle term : terms) arguments.terms.push_back(make_term<T>(term));
  arguments.start_from_q = options["start_from_q"].cast<bool>();
  arguments.iterations = options["iterations"].cast<int>();
  arguments.damping = static_cast<T>(options["damping"].cast<double>());
  arguments.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  arguments.log_output = false;
  arguments.trace = nullptr;
  arguments.trace_slots = 1;
  arguments.trace_stride = 0;
  const int threads = options["threads"].cast<int>();
  MeanFieldOutcome outcome;
  {
    ReleasedGil released;
    arguments.keep_going = {&keep_going, &released};
    outcome = mean_field(arguments, threads);
  }
  return py::make_tuple(outcome.iterations, outcome.change);
}

template <class From, class T>
int64_t pack(uintptr_t in, int64_t num_points, int64_t num_labels, int64_t point_stride, int64_t label_stride, uintptr_t out,
             T factor, T largest, int threads) {
  const ReleasedGil released;
  return pack_unary(pointer<const From>(in), num_points, num_labels, point_stride, label_stride, pointer<T>(out), factor, largest,
                    threads);
}

template <class T>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(("mean_field_" + suffix).c_str(), &run<T>, py::arg("num_points"), py::arg("num_labels"), py::arg("unary"),
             py::arg("q"), py::arg("terms"), py::arg("options"));
  const auto define_pack = [&](const std::string& from, auto function) {
    module.def(("pack_unary_" + from + "_" + suffix).c_str(), function, py::arg("values"), py::arg("num_points"),
               py::arg("num_labels"), py::arg("point_stride"), py::arg("label_stride"), py::arg("out"), py::arg("factor"),
               py::arg("largest"), py::arg("threads"));
  };
  define_pack("f32", &pack<float, T>);
  define_pack("f64", &pack<double, T>);
}

}  // namespace

void register_mean_field(py::module_& module) {
  register_type<float>(module, "f32");
  register_type<double>(module, "f64");
}

}  // namespace deeplab_crf::bindings
