#include <pybind11/stl.h>

#include <atomic>
#include <thread>

#include "bindings/batches.h"
#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "mean_field/cpu/batch.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;

// Ctrl-C for images that run side by side: signals are pending in the calling thread alone, and all images stop for one.
class SignalWatch {
 public:
  explicit SignalWatch(ReleasedGil& released) : released_(released) {}

  InterruptCheck keep_going() { return {&SignalWatch::ask, this}; }

 private:
  static bool ask(void* context) {
    auto& watch = *static_cast<SignalWatch*>(context);
    if (std::this_thread::get_id() == watch.caller_ && !watch.released_.run_signal_handlers()) watch.stopped_ = true;
    return !watch.stopped_;
  }

  ReleasedGil& released_;
  std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_{false};
};

// (lattice, norm_in, norm_out, kind, compat, values), the first fields of both kinds of terms.
template <class T>
BatchTerm<T> make_term(const py::tuple& fields) {
  return {fields[0].cast<const LatticeBatch<T>*>(),      pointer<const T>(fields[1].cast<uintptr_t>()),
          pointer<const T>(fields[2].cast<uintptr_t>()), static_cast<Compatibility>(fields[3].cast<int>()),
          pointer<const T>(fields[4].cast<uintptr_t>()), pointer<T>(fields[5].cast<uintptr_t>())};
}

// An option that is an address.
template <class T>
T* address(const py::dict& options, const char* name) {
  return pointer<T>(options[name].cast<uintptr_t>());
}

template <class T>
py::tuple run(int64_t batch, int64_t num_points, int64_t num_labels, uintptr_t unary, uintptr_t out, const py::list& terms,
              const py::dict& options) {
  MeanFieldBatchArguments<T> arguments{};
  arguments.batch = batch;
  for (const py::handle term : terms) arguments.terms.push_back(make_term<T>(term.cast<py::tuple>()));
  MeanFieldArguments<T>& first = arguments.first;
  first.num_points = num_points;
  first.num_labels = num_labels;
  first.unary = pointer<const T>(unary);
  first.q = pointer<T>(out);
  first.order = address<const int32_t>(options, "order");
  first.start_from_q = options["start_from_q"].cast<bool>();
  first.iterations = options["iterations"].cast<int>();
  first.damping = static_cast<T>(options["damping"].cast<double>());
  first.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  first.log_output = options["log_output"].cast<bool>();
  first.trace = address<T>(options, "trace");
  first.trace_slots = options["trace_slots"].cast<int64_t>();
  first.trace_stride = batch * num_points * num_labels;
  const int threads = options["threads"].cast<int>();
  std::vector<MeanFieldOutcome> outcomes;
  {
    ReleasedGil released;
    SignalWatch watch(released);
    first.keep_going = watch.keep_going();
    outcomes = mean_field(arguments, threads);
  }
  py::list iterations, changes;
  for (const MeanFieldOutcome& outcome : outcomes) {
    iterations.append(outcome.iterations);
    changes.append(outcome.change);
  }
  return py::make_tuple(iterations, changes);
}

template <class T>
py::tuple run_gradient(int64_t batch, int64_t num_points, int64_t num_labels, const py::list& terms, const py::dict& options) {
  GradientBatchArguments<T> arguments{};
  arguments.batch = batch;
  for (const py::handle term : terms) {
    const auto fields = term.cast<py::tuple>();
    const auto gradient = [&](int field) { return pointer<T>(fields[field].cast<uintptr_t>()); };
    arguments.terms.push_back({make_term<T>(fields), gradient(6), gradient(7), gradient(8), gradient(9)});
  }
  GradientArguments<T>& first = arguments.first;
  first.num_points = num_points;
  first.num_labels = num_labels;
  first.order = address<const int32_t>(options, "order");
  first.iterations = options["iterations"].cast<int>();
  first.trace = address<const T>(options, "trace");
  first.trace_stride = options["trace_fixed"].cast<bool>() ? 0 : batch * num_points * num_labels;
  first.output = address<const T>(options, "output");
  first.log_output = options["log_output"].cast<bool>();
  first.grad_output = address<const T>(options, "grad_output");
  first.grad_unary = address<T>(options, "grad_unary");
  first.grad_start = address<T>(options, "grad_start");
  first.tolerance = static_cast<T>(options["tolerance"].cast<double>());
  const int threads = options["threads"].cast<int>();
  std::vector<GradientOutcome<T>> outcomes;
  {
    ReleasedGil released;
    SignalWatch watch(released);
    first.keep_going = watch.keep_going();
    outcomes = mean_field_gradient(arguments, threads);
  }
  py::list steps, moves;
  for (const GradientOutcome<T>& outcome : outcomes) {
    steps.append(outcome.steps);
    moves.append(outcome.move);
  }
  return py::make_tuple(steps, moves);
}

template <class T>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(("mean_field_workspace_" + suffix).c_str(),
             [](const LatticeBatch<T>& lattice, int64_t num_labels, int threads) {
               return batch_workspace(lattice, num_labels, threads, kForwardBuffers);
             },
             py::arg("lattice"), py::arg("num_labels"), py::arg("threads"));
  module.def(("mean_field_batch_" + suffix).c_str(), &run<T>, py::arg("batch"), py::arg("num_points"), py::arg("num_labels"),
             py::arg("unary"), py::arg("out"), py::arg("terms"), py::arg("options"));
  module.def(("mean_field_gradient_workspace_" + suffix).c_str(),
             [](const LatticeBatch<T>& lattice, int64_t num_labels, int threads, bool refilter) {
               return batch_workspace(lattice, num_labels, threads, gradient_buffers(refilter));
             },
             py::arg("lattice"), py::arg("num_labels"), py::arg("threads"), py::arg("refilter"));
  module.def(("mean_field_gradient_" + suffix).c_str(), &run_gradient<T>, py::arg("batch"), py::arg("num_points"),
             py::arg("num_labels"), py::arg("terms"), py::arg("options"));
}

}  // namespace

void register_mean_field_batch(py::module_& module) {
  register_type<float>(module, "f32");
  register_type<double>(module, "f64");
}

}  // namespace deeplab_crf::bindings
