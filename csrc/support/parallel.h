// Threads: one loop primitive with an explicit thread count, used by every CPU driver.
//
// Kernels are written so that what a task computes does not depend on which thread runs it; so the results have the same
// bits for every thread count. In a forked child the loop is serial: libgomp's threads do not survive a fork, and its
// first parallel region there would hang.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace deeplab_crf {

// True if the library was compiled with OpenMP.
bool has_openmp();

// The thread count that a loop over `tasks` tasks really uses: 1 in a forked child and without OpenMP.
int effective_threads(int threads, int64_t tasks);

// Called once when the module is loaded: notes forks from then on.
void watch_forks();

// Calls body(task) for every task in [0, tasks), tasks handed out one at a time. An exception of any task is rethrown in the
// calling thread after all running tasks have ended; tasks that had not started by then are dropped.
template <class Body>
void parallel_for(int threads, int64_t tasks, const Body& body) {
  const int count = effective_threads(threads, tasks);
  if (count <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
#ifdef _OPENMP
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(count) schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      body(task);
    } catch (...) {
#pragma omp critical(deeplab_crf_parallel_failure)
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
#endif
}

}  // namespace deeplab_crf
