// The GIL, given up while native code runs. All bindings use this guard.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace deeplab_crf::bindings {

// Gives up the GIL and takes it back at the end of its scope, in the thread that made it.
//
// At the exit of the interpreter, before Python 3.14, taking the GIL back ends a daemon thread by unwinding its stack, as
// pthread_exit does. The unwinding would terminate the process at the first destructor, that of pybind11's gil_scoped_release, and
// would release Python objects without the GIL. The thread sleeps until the process ends instead, as from Python 3.14 on.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() { take_back(); }

  // Runs the handlers of pending signals. Returns false if one of them raised: the native code must then return.
  bool run_signal_handlers() {
    take_back();
    const bool none_raised = PyErr_CheckSignals() == 0;
    state_ = PyEval_SaveThread();
    return none_raised;
  }

 private:
  void take_back() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // the unwinding, which ends the process if a handler returns
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

  PyThreadState* state_;
};

}  // namespace deeplab_crf::bindings
