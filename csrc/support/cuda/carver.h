// Workspaces of several arrays.
#pragma once

#include <cstdint>

namespace deeplab_crf::cuda {

// Hands out parts of a workspace; without one it only counts.
class Carver {
 public:
  explicit Carver(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <class E>
  E* take(int64_t count) {
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
