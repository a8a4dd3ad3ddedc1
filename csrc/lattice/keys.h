// Vertex keys packed into machine words, and a hash table over them.
//
// A vertex is known by its first d coordinates. Each gets a bit field just wide enough for the range that the features allow,
// so that for photographs a key is one 64-bit word; more fields take more words. Moving to a neighbour or to the next vertex
// of a simplex is then an addition per word, since fields have room for it and never overflow.
#pragma once

#include <cstdint>
#include <vector>

#include "lattice/geometry.h"

namespace deeplab_crf {

template <int K>
struct Key {
  uint64_t word[K];

  Key& operator+=(const Key& other) {
    for (int w = 0; w < K; ++w) word[w] += other.word[w];
    return *this;
  }
  Key& operator-=(const Key& other) {
    for (int w = 0; w < K; ++w) word[w] -= other.word[w];
    return *this;
  }
  friend Key operator+(Key a, const Key& b) { return a += b; }
  friend Key operator-(Key a, const Key& b) { return a -= b; }
  friend bool operator==(const Key& a, const Key& b) {
    for (int w = 0; w < K; ++w) {
      if (a.word[w] != b.word[w]) return false;
    }
    return true;
  }
  uint64_t hash() const {
    uint64_t mixed = word[0];
    for (int w = 1; w < K; ++w) mixed = (mixed ^ (mixed >> 29)) * 0xbf58476d1ce4e5b9ull + word[w];
    return mixed * 0x9e3779b97f4a7c15ull;
  }
};

// Where each coordinate's field lies.
struct KeyLayout {
  int dims = 0;
  int words = 0;
  int word[geometry::kMaxDimensions];
  int shift[geometry::kMaxDimensions];
  int64_t minimum[geometry::kMaxDimensions];

  // Fields that hold every integer of [low_i, high_i].
  KeyLayout(int dims, const int64_t* low, const int64_t* high) : dims(dims) {
    int used = 0;
    words = 1;
    for (int i = 0; i < dims; ++i) {
      int bits = 1;
      while ((high[i] - low[i]) >> bits) ++bits;
      if (used + bits > 64) {
        ++words;
        used = 0;
      }
      word[i] = words - 1;
      shift[i] = used;
      minimum[i] = low[i];
      used += bits;
    }
  }

  // The key whose coordinate i is 1 and whose other coordinates are 0, as a difference of keys.
  template <int K>
  Key<K> unit(int i) const {
    Key<K> key{};
    key.word[word[i]] = uint64_t{1} << shift[i];
    return key;
  }
};

// Keys numbered in the order of their first insertion. Linear probing, at most half full.
template <int K>
class KeyTable {
 public:
  // Room for `expected` keys without growing.
  explicit KeyTable(int64_t expected = 0) { resize(expected); }

  // Forgets all keys and keeps the memory.
  void clear() {
    for (Slot& slot : slots_) slot.id = kEmpty;
    size_ = 0;
  }

  int64_t size() const { return size_; }

  // The key's number; inserts it if it is new.
  int32_t insert(const Key<K>& key) {
    uint64_t place = key.hash() >> shift_;
    while (slots_[place].id != kEmpty) {
      if (slots_[place].key == key) return slots_[place].id;
      place = (place + 1) & mask_;
    }
    const int32_t id = static_cast<int32_t>(size_);
    slots_[place] = {key, id};
    ++size_;
    if (size_ * 2 > static_cast<int64_t>(slots_.size())) grow();
    return id;
  }

  // The key's number, or -1.
  int32_t find(const Key<K>& key) const {
    uint64_t place = key.hash() >> shift_;
    while (slots_[place].id != kEmpty) {
      if (slots_[place].key == key) return slots_[place].id;
      place = (place + 1) & mask_;
    }
    return kEmpty;
  }

  // Hint that `key` will be looked up soon.
  void prefetch(const Key<K>& key) const { __builtin_prefetch(&slots_[key.hash() >> shift_]); }

 private:
  static constexpr int32_t kEmpty = -1;
  struct Slot {
    Key<K> key;
    int32_t id;
  };

  void resize(int64_t expected) {
    int bits = 6;
    while ((int64_t{1} << bits) < 2 * expected + 2) ++bits;
    slots_.assign(size_t{1} << bits, Slot{{}, kEmpty});
    mask_ = (uint64_t{1} << bits) - 1;
    shift_ = 64 - bits;
  }

  void grow() {
    std::vector<Slot> old;
    old.swap(slots_);
    resize(2 * size_);
    for (const Slot& slot : old) {
      if (slot.id == kEmpty) continue;
      uint64_t place = slot.key.hash() >> shift_;
      while (slots_[place].id != kEmpty) place = (place + 1) & mask_;
      slots_[place] = slot;
    }
  }

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  int shift_ = 0;
  int64_t size_ = 0;
};

}  // namespace deeplab_crf
