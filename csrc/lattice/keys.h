// Vertex keys packed into machine words, and a hash table over them.
//
// A vertex is known by its first d coordinates. Each gets a bit field just wide enough for the range that the features allow,
// so that for photographs a key is one 64-bit word; more fields take more words. Moving to a neighbour or to the next vertex
// of a simplex is then an addition per word, since fields have room for it and never overflow. Keys and their layout are for the
// host and the device.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "lattice/geometry.h"

namespace deeplab_crf {

template <int K>
struct Key {
  uint64_t word[K];

  DEEPLAB_CRF_HOST_DEVICE Key& operator+=(const Key& other) {
    for (int w = 0; w < K; ++w) word[w] += other.word[w];
    return *this;
  }
  DEEPLAB_CRF_HOST_DEVICE Key& operator-=(const Key& other) {
    for (int w = 0; w < K; ++w) word[w] -= other.word[w];
    return *this;
  }
  friend DEEPLAB_CRF_HOST_DEVICE Key operator+(Key a, const Key& b) { return a += b; }
  friend DEEPLAB_CRF_HOST_DEVICE Key operator-(Key a, const Key& b) { return a -= b; }
  friend DEEPLAB_CRF_HOST_DEVICE bool operator==(const Key& a, const Key& b) {
    for (int w = 0; w < K; ++w) {
      if (a.word[w] != b.word[w]) return false;
    }
    return true;
  }
  friend DEEPLAB_CRF_HOST_DEVICE bool operator<(const Key& a, const Key& b) {
    for (int w = K - 1; w > 0; --w) {
      if (a.word[w] != b.word[w]) return a.word[w] < b.word[w];
    }
    return a.word[0] < b.word[0];
  }
  DEEPLAB_CRF_HOST_DEVICE uint64_t hash() const {
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

  // Fields that hold every integer of [low_i, high_i]. A range that is reversed or wider than 64 bits can hold gets some field too,
  // since a device has nobody to throw at: who calls has checked the ranges.
  DEEPLAB_CRF_HOST_DEVICE KeyLayout(int dims, const int64_t* low, const int64_t* high) : dims(dims) {
    int used = 0;
    words = 1;
    for (int i = 0; i < dims; ++i) {
      const uint64_t range = low[i] < high[i] ? static_cast<uint64_t>(high[i]) - static_cast<uint64_t>(low[i]) : 0;
      int bits = 1;
      while (bits < 64 && range >> bits) ++bits;
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
  DEEPLAB_CRF_HOST_DEVICE Key<K> unit(int i) const {
    Key<K> key{};
    key.word[word[i]] = uint64_t{1} << shift[i];
    return key;
  }
};

// Keys in ascending order, each with its number. Neighbours along an axis are then found by a merge of the list with itself,
// shifted by the axis' step: memory is read in order, where look-ups in a hash table would miss the caches.
template <int K>
struct SortedKeys {
  std::vector<Key<K>> keys;
  std::vector<int32_t> ids;

  // Radix sort, least digit first, of keys numbered by their place.
  explicit SortedKeys(const std::vector<Key<K>>& numbered) : keys(numbered), ids(numbered.size()) {
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    for (int w = 0; w < K; ++w) {
      uint64_t used = 0;
      for (const Key<K>& key : keys) used |= key.word[w];
      for (int shift = 0; shift < 64 && used >> shift; shift += kDigitBits) sort_by_digit(w, shift);
    }
  }

 private:
  static constexpr int kDigitBits = 11;
  static constexpr uint64_t kDigitMask = (1u << kDigitBits) - 1;

  void sort_by_digit(int w, int shift) {
    std::vector<uint32_t> place(kDigitMask + 2, 0);
    for (const Key<K>& key : keys) ++place[((key.word[w] >> shift) & kDigitMask) + 1];
    for (size_t digit = 1; digit < place.size(); ++digit) place[digit] += place[digit - 1];
    spare_keys_.resize(keys.size());
    spare_ids_.resize(ids.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint32_t to = place[(keys[i].word[w] >> shift) & kDigitMask]++;
      spare_keys_[to] = keys[i];
      spare_ids_[to] = ids[i];
    }
    keys.swap(spare_keys_);
    ids.swap(spare_ids_);
  }

  std::vector<Key<K>> spare_keys_;
  std::vector<int32_t> spare_ids_;
};

// Keys numbered in the order of their first insertion. Linear probing, at most half full. A slot holds a number and 32 bits of
// the hash, so that most probes end without a look at the keys, and eight slots share a cache line.
template <int K>
class KeyTable {
 public:
  // Room for `expected` keys without growing.
  explicit KeyTable(int64_t expected = 0) { resize(expected); }

  // All keys by number.
  const std::vector<Key<K>>& keys() const { return keys_; }
  std::vector<Key<K>> take_keys() { return std::move(keys_); }

  // The key's number; inserts it if it is new.
  int32_t insert(const Key<K>& key) {
    const uint64_t hash = key.hash();
    const uint64_t place = probe(key, hash);
    if (slots_[place].id != kEmpty) return slots_[place].id;
    const int32_t id = static_cast<int32_t>(keys_.size());
    slots_[place] = {tag(hash), id};
    keys_.push_back(key);
    if (keys_.size() * 2 > slots_.size()) resize(2 * static_cast<int64_t>(keys_.size()));
    return id;
  }

  // Hint that `key` will be looked up soon.
  void prefetch(const Key<K>& key) const { __builtin_prefetch(&slots_[key.hash() >> shift_]); }

 private:
  static constexpr int32_t kEmpty = -1;
  struct Slot {
    uint32_t tag;
    int32_t id;
  };

  // Bits of the hash that a place does not use.
  static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 8); }

  // Where the key is, or the free place where it belongs.
  uint64_t probe(const Key<K>& key, uint64_t hash) const {
    uint64_t place = hash >> shift_;
    while (slots_[place].id != kEmpty && !(slots_[place].tag == tag(hash) && keys_[slots_[place].id] == key)) {
      place = (place + 1) & mask_;
    }
    return place;
  }

  void resize(int64_t expected) {
    int bits = 6;
    while ((int64_t{1} << bits) < 2 * expected + 2) ++bits;
    slots_.assign(size_t{1} << bits, Slot{0, kEmpty});
    mask_ = (uint64_t{1} << bits) - 1;
    shift_ = 64 - bits;
    for (size_t id = 0; id < keys_.size(); ++id) {
      const uint64_t hash = keys_[id].hash();
      uint64_t place = hash >> shift_;
      while (slots_[place].id != kEmpty) place = (place + 1) & mask_;
      slots_[place] = {tag(hash), static_cast<int32_t>(id)};
    }
  }

  std::vector<Slot> slots_;
  std::vector<Key<K>> keys_;
  uint64_t mask_ = 0;
  int shift_ = 0;
};

}  // namespace deeplab_crf
