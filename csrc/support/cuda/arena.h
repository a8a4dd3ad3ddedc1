// Workspaces of several arrays.
#pragma once

#include <cstdint>

namespace deeplab_crf::cuda {

// Allocates arrays within a workspace; without one it only adds up their sizes.
class Arena {
 public:
  explicit Arena(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <class E>
  E* allocate(int64_t count) {
    char* part = begin_ == nullptr ? nullptr : begin_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(E)) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<E*>(part);
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* begin_;
  int64_t used_ = 0;
};

}  // namespace deeplab_crf::cuda
