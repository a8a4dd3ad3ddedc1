#include "support/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace deeplab_crf {
namespace {

// Workers are never ended: whatever a caller asks for, no more exist.
constexpr int kMostWorkers = 1023;

// How long a worker looks for the next loop before it sleeps: longer than the serial work between two loops of an inference.
constexpr int kSpins = 2000;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  void run(int threads, int64_t tasks, void (*call)(const void*, int64_t), const void* context) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      call_ = call;
      context_ = context;
      tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
      failure_ = nullptr;
      const int wanted = static_cast<int>(std::min({int64_t{threads} - 1, tasks - 1, int64_t{kMostWorkers}}));
      start_workers(wanted);
      places_ = std::min(wanted, workers_);
      loop_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks();
    std::unique_lock<std::mutex> lock(mutex_);
    places_ = 0;  // who has not joined by now need not
    idle_.wait(lock, [this] { return inside_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  // As many as the system allows: with fewer the loop takes longer, no more.
  void start_workers(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void take_tasks() {
    for (int64_t task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1)) {
      try {
        call_(context_, task);
      } catch (...) {
        next_.store(tasks_);
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && loop_.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return loop_.load(std::memory_order_relaxed) != seen; });
        seen = loop_.load(std::memory_order_relaxed);
        if (places_ == 0) continue;
        --places_;
        ++inside_;
      }
      take_tasks();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--inside_ == 0) idle_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::atomic<uint64_t> loop_{0};
  std::atomic<int64_t> next_{0};
  void (*call_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  int places_ = 0;   // workers that may still join the loop
  int inside_ = 0;   // workers in the loop
  int workers_ = 0;  // workers that exist
  std::exception_ptr failure_;
};

// Set while a loop has the workers.
std::atomic_flag pool_taken;

// Never destroyed: workers may outlive static destruction.
Pool& pool() {
  static auto* const instance = new Pool;
  return *instance;
}

std::atomic<bool> in_forked_child{false};

}  // namespace

void run_tasks(int threads, int64_t tasks, void (*call)(const void*, int64_t), const void* context) {
  if (in_forked_child.load(std::memory_order_relaxed) || pool_taken.test_and_set(std::memory_order_acquire)) {
    for (int64_t task = 0; task < tasks; ++task) call(context, task);
    return;
  }
  struct Release {
    ~Release() { pool_taken.clear(std::memory_order_release); }
  } const release;
  pool().run(threads, tasks, call, context);
}

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
#endif
}

}  // namespace deeplab_crf
