// Arrays of integers whose memory is reused by later calls: fresh pages cost more than copying into them.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

namespace deeplab_crf {

// An uninitialised array. Its capacity is the next power of two, of which only the pages that are written take memory. When it
// ends, its memory waits in a slot of its capacity for the next array of about this size; arrays of different sizes therefore do
// not displace each other. Slots are atomics and hold no lock, so that a forked child can use them.
class SpareBuffer {
 public:
  explicit SpareBuffer(int64_t size) : bits_(std::bit_width(static_cast<uint64_t>(size > 0 ? size - 1 : 0))) {
    for (std::atomic<int32_t*>* slot = first_slot(); slot != nullptr && slot < first_slot() + kSlots && !numbers_; ++slot) {
      numbers_.reset(slot->exchange(nullptr));
    }
    if (!numbers_) numbers_.reset(new int32_t[int64_t{1} << bits_]);
  }
  SpareBuffer(SpareBuffer&&) = default;
  ~SpareBuffer() {
    for (std::atomic<int32_t*>* slot = first_slot(); slot != nullptr && slot < first_slot() + kSlots && numbers_; ++slot) {
      int32_t* empty = nullptr;
      if (slot->compare_exchange_strong(empty, numbers_.get())) numbers_.release();
    }
  }

  int32_t* get() const { return numbers_.get(); }

 private:
  static constexpr int kSlots = 2;         // of each capacity
  static constexpr int kLargestBits = 24;  // 64 MiB: larger arrays are freed at once

  // The slots of this capacity, or null if its memory is not kept.
  std::atomic<int32_t*>* first_slot() const {
    static std::array<std::array<std::atomic<int32_t*>, kSlots>, kLargestBits + 1> slots{};
    return bits_ <= kLargestBits ? slots[bits_].data() : nullptr;
  }

  int bits_;
  std::unique_ptr<int32_t[]> numbers_;
};

}  // namespace deeplab_crf
