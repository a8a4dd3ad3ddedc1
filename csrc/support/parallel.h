// Threads: one loop primitive with an explicit thread count, used by every CPU driver.
//
// Kernels are written so that what a task computes does not depend on which thread runs it; so the results have the same
// bits for every thread count.
//
// A pool of our own, not OpenMP: the caller takes tasks like every worker and waits only for workers that hold one. On a busy
// machine a worker that the system does not run in time therefore costs nothing, where OpenMP's barriers wait for it (seen at a
// load of 3.8 on two cores: 100 x 80 pixels took 8 ms with one thread and 627 ms with two). It needs no runtime library, and a
// forked child, which has no workers, runs its loops alone instead of hanging.
#pragma once

#include <cstdint>

namespace deeplab_crf {

// Calls call(context, task) for every task in [0, tasks), tasks handed out one at a time to at most `threads` threads, the
// calling one among them. An exception of any task is rethrown in the calling thread after all running tasks have ended; tasks
// that had not started by then are dropped. One loop at a time has the workers: others, and loops within tasks, run alone in
// their own thread.
void run_tasks(int threads, int64_t tasks, void (*call)(const void* context, int64_t task), const void* context);

// The same with body(task).
template <class Body>
void parallel_for(int threads, int64_t tasks, const Body& body) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  run_tasks(threads, tasks, [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body);
}

// Called once when the module is loaded: notes forks from then on.
void watch_forks();

}  // namespace deeplab_crf
