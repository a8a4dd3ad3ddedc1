#include "support/cuda/emulation.h"

#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "support/cuda/device.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Saves what a function call keeps, leaves the stack's address in *from, and goes on where `to` was left. swapcontext also saves
// the signal mask, by two system calls, which cost ten times as much as all the rest of a test.
extern "C" void deeplab_crf_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden deeplab_crf_switch_stack
.globl deeplab_crf_switch_stack
.type deeplab_crf_switch_stack, @function
deeplab_crf_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size deeplab_crf_switch_stack, .-deeplab_crf_switch_stack
)");
#endif

namespace deeplab_crf::cuda {

emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kPage = 4096;
constexpr size_t kStackSize = 64 * kPage;

// Where one of two sides, a fiber and the scheduler, stands while the other one runs.
#ifdef __x86_64__
class Context {
 public:
  // On a stack of its own; `entry` must not return.
  void prepare(char* stack_end, void (*entry)()) {
    constexpr int kSaved = 6;
    auto* top = reinterpret_cast<void**>(stack_end);
    *--top = nullptr;  // no return address
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSaved; ++i) *--top = nullptr;
    stack_ = top;
  }
  void switch_to(Context& other) { deeplab_crf_switch_stack(&stack_, other.stack_); }

 private:
  void* stack_ = nullptr;
};
#else
class Context {
 public:
  void prepare(char* stack_end, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_end - kStackSize;
    context_.uc_stack.ss_size = kStackSize;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};
#endif

// A stack, with an inaccessible page below it, and where it stands.
class Fiber {
 public:
  Fiber() : memory_(mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (memory_ == MAP_FAILED) throw CudaError("the emulation of CUDA found no memory for the stack of a thread");
    mprotect(memory_, kPage, PROT_NONE);
  }
  ~Fiber() { munmap(memory_, kStackSize); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepared so that the next enter() calls `entry`, which must not return.
  void prepare(void (*entry)()) { context_.prepare(static_cast<char*>(memory_) + kStackSize, entry); }

  // From the scheduler into the fiber, until it leaves.
  void enter() {
#ifdef __SANITIZE_ADDRESS__
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, memory_, kStackSize);
#endif
    scheduler_.switch_to(context_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
  }

  // First thing in a fiber.
  void entered() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(sanitizer_stack_, &scheduler_stack_, &scheduler_size_);
    sanitizer_stack_ = nullptr;
#endif
  }

  // From the fiber back to the scheduler, until entered again; for ever if it has ended.
  void leave([[maybe_unused]] bool ended) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ended ? nullptr : &sanitizer_stack_, scheduler_stack_, scheduler_size_);
#endif
    context_.switch_to(scheduler_);
    entered();
  }

 private:
  void* memory_;
  Context context_, scheduler_;
#ifdef __SANITIZE_ADDRESS__
  void* sanitizer_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
#endif
};

enum class State { kRuns, kAtBlock, kAtWarp, kEnded };

struct Thread {
  State state = State::kRuns;
  unsigned mask = 0;
  int line = 0;
  unsigned exchanges = 0;
  Fiber* fiber = nullptr;
};

// What the lanes of a warp leave for one another. Two sets, used in turn: a lane may be one exchange ahead of the others.
struct Warp {
  uint64_t lanes[2][kWarp];
};

class Scheduler;
Scheduler& scheduler();

// The block that runs, and all it needs again for the next one.
class Scheduler {
 public:
  void run(const char* name, unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
    name_ = name;
    kernel_ = &kernel;
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    thread_order_ = ordered(threads);
    warps_.resize((threads + kWarp - 1) / kWarp);
    for (const unsigned block : ordered(blocks)) {
      blockIdx = {block, 0, 0};
      run_block();
    }
  }

  void set_order(unsigned order) { order_ = order; }

  Thread& current() { return threads_[threadIdx.x]; }
  Warp& current_warp() { return warps_[threadIdx.x / kWarp]; }
  bool has_lane(int lane) const {
    return lane >= 0 && lane < static_cast<int>(kWarp) && threadIdx.x / kWarp * kWarp + lane < threads_.size();
  }

  // Called by a running thread: others run until this one may go on.
  void wait(State state, unsigned mask, int line) {
    Thread& thread = current();
    thread.state = state;
    thread.mask = mask;
    thread.line = line;
    thread.fiber = running_;
    thread.fiber->leave(false);
  }

  // The life of a fiber: threads that have not begun yet, until one of them waits. Entered again, it ends that thread.
  void live() {
    Fiber* self = running_;
    self->entered();
    while (begun_ < thread_order_.size()) {
      threadIdx = {thread_order_[begun_++], 0, 0};
      (*kernel_)();
      current().state = State::kEnded;
    }
    idle_.push_back(self);
    self->leave(true);
  }

 private:
  std::vector<unsigned> ordered(unsigned count) const {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (order_ == 1) std::reverse(order.begin(), order.end());
    if (order_ > 1) std::shuffle(order.begin(), order.end(), std::mt19937(order_));
    return order;
  }

  void run_block() {
    threads_.assign(thread_order_.size(), Thread{});
    begun_ = 0;
    while (begun_ < thread_order_.size()) enter(new_fiber());
    while (release()) {
      for (const unsigned number : thread_order_) {
        Thread& thread = threads_[number];
        if (thread.state != State::kRuns) continue;
        threadIdx = {number, 0, 0};
        enter(thread.fiber);
      }
    }
  }

  Fiber* new_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    fiber->prepare([] { scheduler().live(); });
    return fiber;
  }

  void enter(Fiber* fiber) {
    running_ = fiber;
    fiber->enter();
  }

  // Lets go on whom nothing holds any more. False once all threads have ended; throws if those left wait for ever.
  bool release() {
    bool all_ended = true, at_block = true;
    for (const Thread& thread : threads_) {
      all_ended &= thread.state == State::kEnded;
      at_block &= thread.state == State::kAtBlock && thread.line == threads_[0].line;
    }
    if (all_ended) return false;
    if (at_block) {
      for (Thread& thread : threads_) thread.state = State::kRuns;
      return true;
    }
    bool released = false;
    for (size_t first = 0; first < threads_.size(); first += kWarp) released |= release_warp(first);
    if (!released) fail();
    return true;
  }

  bool release_warp(size_t first) {
    const size_t count = std::min<size_t>(kWarp, threads_.size() - first);
    unsigned ready = 0;
    for (size_t lane = 0; lane < count; ++lane) {
      const Thread& thread = threads_[first + lane];
      bool together = thread.state == State::kAtWarp && (thread.mask >> lane & 1);
      for (size_t other = 0; other < count && together; ++other) {
        const Thread& its = threads_[first + other];
        if (thread.mask >> other & 1) together = its.state == State::kAtWarp && its.line == thread.line && its.mask == thread.mask;
      }
      ready |= static_cast<unsigned>(together) << lane;
    }
    for (size_t lane = 0; lane < count; ++lane) {
      if (ready >> lane & 1) threads_[first + lane].state = State::kRuns;
    }
    return ready != 0;
  }

  [[noreturn]] void fail() {
    std::string text = std::string(name_) + ", block " + std::to_string(blockIdx.x) + ": threads wait for one another for ever:";
    const Thread* before = nullptr;
    for (size_t number = 0; number < threads_.size(); ++number) {
      const Thread& thread = threads_[number];
      if (before != nullptr && before->state == thread.state && before->line == thread.line) continue;
      before = &thread;
      text += " from thread " + std::to_string(number);
      text += thread.state == State::kEnded    ? " on they have ended;"
              : thread.state == State::kAtWarp ? " on they are in the warp operation of line " + std::to_string(thread.line) + ";"
                                               : " on they are at the barrier of line " + std::to_string(thread.line) + ";";
    }
    // The fibers of threads that wait are lost in the middle of a kernel.
    fibers_.clear();
    idle_.clear();
    throw CudaError(text);
  }

  const char* name_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  unsigned order_ = 0;
  std::vector<unsigned> thread_order_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Fiber* running_ = nullptr;
  size_t begun_ = 0;
};

Scheduler& scheduler() {
  static Scheduler the_one;
  return the_one;
}

std::mutex one_grid;

}  // namespace

void run_grid(const char* name, unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  const std::lock_guard lock(one_grid);
  scheduler().run(name, blocks, threads, kernel);
}

void set_thread_order(unsigned order) {
  const std::lock_guard lock(one_grid);
  scheduler().set_order(order);
}

void wait_for_block(int line) { scheduler().wait(State::kAtBlock, 0, line); }

void wait_for_warp(unsigned mask, int line) { scheduler().wait(State::kAtWarp, mask, line); }

int lane() { return static_cast<int>(threadIdx.x % kWarp); }

uint64_t exchange(unsigned mask, uint64_t value, int source, int line) {
  uint64_t* lanes = scheduler().current_warp().lanes[scheduler().current().exchanges++ % 2];
  lanes[lane()] = value;
  wait_for_warp(mask, line);
  return scheduler().has_lane(source) ? lanes[source] : value;
}

unsigned ballot(unsigned mask, bool predicate, int line) {
  uint64_t* lanes = scheduler().current_warp().lanes[scheduler().current().exchanges++ % 2];
  lanes[lane()] = predicate ? 1 : 0;
  wait_for_warp(mask, line);
  unsigned bits = 0;
  for (int other = 0; other < static_cast<int>(kWarp); ++other) {
    if ((mask >> other & 1) && scheduler().has_lane(other) && lanes[other] != 0) bits |= 1u << other;
  }
  return bits;
}

}  // namespace emulation
}  // namespace deeplab_crf::cuda
