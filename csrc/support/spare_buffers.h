// Arrays of integers whose memory is kept for later calls: fresh pages cost more than copying into them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace deeplab_crf {

// An uninitialised array. When it ends, its memory waits in one of a few slots for the next one, unless it is larger than
// kLargestSpare bytes or all slots are taken. Slots are atomics and hold no lock, so that a forked child can use them.
class SpareBuffer {
 public:
  explicit SpareBuffer(int64_t size) {
    for (std::atomic<Block*>& slot : slots()) {
      std::unique_ptr<Block> spare(slot.exchange(nullptr));
      if (spare && spare->capacity >= size) {
        block_ = std::move(spare);
        return;
      }
    }
    block_ = std::make_unique<Block>(Block{size, std::unique_ptr<int32_t[]>(new int32_t[size])});
  }
  SpareBuffer(SpareBuffer&&) = default;
  ~SpareBuffer() {
    if (!block_ || block_->capacity * static_cast<int64_t>(sizeof(int32_t)) > kLargestSpare) return;
    for (std::atomic<Block*>& slot : slots()) {
      Block* empty = nullptr;
      if (slot.compare_exchange_strong(empty, block_.get())) {
        block_.release();
        return;
      }
    }
  }

  int32_t* get() const { return block_->numbers.get(); }

 private:
  struct Block {
    int64_t capacity;
    std::unique_ptr<int32_t[]> numbers;
  };
  static constexpr int kSlots = 4;
  static constexpr int64_t kLargestSpare = int64_t{64} << 20;

  static std::array<std::atomic<Block*>, kSlots>& slots() {
    static std::array<std::atomic<Block*>, kSlots> instance{};
    return instance;
  }

  std::unique_ptr<Block> block_;
};

}  // namespace deeplab_crf
