#include "support/parallel.h"

#include <algorithm>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace deeplab_crf {
namespace {

std::atomic<bool> in_forked_child{false};

}  // namespace

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

int effective_threads(int threads, int64_t tasks) {
  if (!has_openmp() || in_forked_child.load(std::memory_order_relaxed)) return 1;
  return static_cast<int>(std::clamp<int64_t>(tasks, 1, std::max(threads, 1)));
}

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
#endif
}

}  // namespace deeplab_crf
