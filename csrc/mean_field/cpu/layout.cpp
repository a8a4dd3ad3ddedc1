#include "mean_field/cpu/layout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "lattice/lattice.h"
#include "support/parallel.h"

namespace deeplab_crf {
namespace {

// Tiles of points whose rows stay in the first-level cache while they are written, whatever the order of the input.
constexpr int64_t kTileBytes = 16384;

template <class From, class T>
struct Packing {
  const From* in;
  int64_t num_points;
  int64_t num_labels;
  int64_t point_stride;
  int64_t label_stride;
  T* out;
  T factor;
  T largest;
};

// Fetches what the tile after the next reads of a label: labels are more streams than the hardware's prefetcher follows.
template <class From, class T>
void fetch_ahead(const Packing<From, T>& a, int64_t label, int64_t first, int64_t last) {
  constexpr int64_t kLine = 64 / sizeof(From);
  const int64_t ahead = 2 * (last - first), end = std::min(last + ahead, a.num_points);
  for (int64_t p = first + ahead; p < end; p += kLine) __builtin_prefetch(a.in + label * a.label_stride + p);
}

// One label of the points [first, last). Adds value * 0 to `poison`: NaN as soon as one value is NaN or inf.
template <class From, class T>
void pack_label(const Packing<From, T>& a, int64_t label, int64_t first, int64_t last, T& poison) {
  const From* source = a.in + label * a.label_stride;
  if (a.point_stride == 1) fetch_ahead(a, label, first, last);
  for (int64_t p = first; p < last; ++p) {
    const T value = a.factor * static_cast<T>(source[p * a.point_stride]);
    poison += value * T(0);
    a.out[p * a.num_labels + label] = value;
  }
}

#if defined(__clang__) || __GNUC__ >= 12
// As many labels as there are whole fours, through the registers, four labels of four points at a time: three fifths of the time of
// label after label. Returns their number, 0 if the layout does not allow it.
template <class T>
int64_t pack_fours(const Packing<T, T>& a, int64_t first, int64_t last, T& poison) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  if (a.point_stride != 1 || (last - first) % 4 != 0) return 0;
  const T factor = a.factor;
  const auto load = [factor](const T* from) { return *reinterpret_cast<const Four*>(from) * factor; };
  const auto store = [](Four value, T* to) { *reinterpret_cast<Four*>(to) = value; };
  Four poisons{};
  int64_t label = 0;
  for (; label + 4 <= a.num_labels; label += 4) {
    for (int64_t l = label; l < label + 4; ++l) fetch_ahead(a, l, first, last);
    for (int64_t p = first; p < last; p += 4) {
      const T* source = a.in + label * a.label_stride + p;
      const Four w = load(source), x = load(source + a.label_stride);
      const Four y = load(source + 2 * a.label_stride), z = load(source + 3 * a.label_stride);
      poisons += (w + x + y + z) * T(0);
      const Four wx = __builtin_shufflevector(w, x, 0, 4, 1, 5), yz = __builtin_shufflevector(y, z, 0, 4, 1, 5);
      const Four high_wx = __builtin_shufflevector(w, x, 2, 6, 3, 7), high_yz = __builtin_shufflevector(y, z, 2, 6, 3, 7);
      T* target = a.out + p * a.num_labels + label;
      store(__builtin_shufflevector(wx, yz, 0, 1, 4, 5), target);
      store(__builtin_shufflevector(wx, yz, 2, 3, 6, 7), target + a.num_labels);
      store(__builtin_shufflevector(high_wx, high_yz, 0, 1, 4, 5), target + 2 * a.num_labels);
      store(__builtin_shufflevector(high_wx, high_yz, 2, 3, 6, 7), target + 3 * a.num_labels);
    }
  }
  poison += poisons[0] + poisons[1] + poisons[2] + poisons[3];
  return label;
}
#endif

// Caps the points of a tile that have an infinite value beside another one. Few tiles have one, so the packing does not look. What
// was finite and is too large for T stays infinite, which find_bad reports. Loops without branches, which compilers vectorise.
template <class From, class T>
void cap_points(const Packing<From, T>& a, int64_t first, int64_t last) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  if (a.largest == kInfinity) return;
  for (int64_t p = first; p < last; ++p) {
    T* row = a.out + p * a.num_labels;
    int infinite = 0, others = 0;
    for (int64_t l = 0; l < a.num_labels; ++l) {
      infinite |= static_cast<int>(row[l] == kInfinity);
      others |= static_cast<int>(row[l] != kInfinity);
    }
    if (infinite == 0 || others == 0) continue;
    for (int64_t l = 0; l < a.num_labels; ++l) {
      bool capped = true;
      if constexpr (!std::is_same_v<From, T>) {
        capped = row[l] != kInfinity || std::isinf(a.in[p * a.point_stride + l * a.label_stride]);
      }
      row[l] = capped && a.largest < row[l] ? a.largest : row[l];  // NaN stays NaN
    }
  }
}

// The first index, label by label, of a value of a tile that is not finite, or -1.
template <class From, class T>
int64_t find_bad(const Packing<From, T>& a, int64_t first, int64_t last) {
  int bad = 0;
  for (int64_t i = first * a.num_labels; i < last * a.num_labels; ++i) bad |= static_cast<int>(!(a.out[i] - a.out[i] == T(0)));
  if (bad == 0) return -1;
  for (int64_t l = 0; l < a.num_labels; ++l) {
    for (int64_t p = first; p < last; ++p) {
      if (!std::isfinite(a.out[p * a.num_labels + l])) return l * a.num_points + p;
    }
  }
  return -1;
}

}  // namespace

template <class From, class T>
int64_t pack_unary(const From* in, int64_t num_points, int64_t num_labels, int64_t point_stride, int64_t label_stride, T* out,
                   T factor, T largest, int threads) {
  const Packing<From, T> packing{in, num_points, num_labels, point_stride, label_stride, out, factor, largest};
  const int64_t tile = std::clamp<int64_t>(kTileBytes / (num_labels * static_cast<int64_t>(sizeof(T))), 16, 64) / 4 * 4;
  const int64_t chunks = chunk_count(num_points);
  std::vector<int64_t> bad(chunks, -1);
  parallel_for(threads, chunks, [&](int64_t c) {
    const int64_t end = chunk_begin(num_points, c + 1);
    for (int64_t first = chunk_begin(num_points, c); first < end; first += tile) {
      const int64_t last = std::min(first + tile, end);
      T poison = 0;
      int64_t label = 0;
#if defined(__clang__) || __GNUC__ >= 12
      if constexpr (std::is_same_v<From, T>) label = pack_fours(packing, first, last, poison);
#endif
      for (; label < num_labels; ++label) pack_label(packing, label, first, last, poison);
      if (poison != T(0)) {
        cap_points(packing, first, last);
        if (bad[c] < 0) bad[c] = find_bad(packing, first, last);
      }
    }
  });
  for (int64_t index : bad) {
    if (index >= 0) return index;
  }
  return -1;
}

template int64_t pack_unary<float, float>(const float*, int64_t, int64_t, int64_t, int64_t, float*, float, float, int);
template int64_t pack_unary<float, double>(const float*, int64_t, int64_t, int64_t, int64_t, double*, double, double, int);
template int64_t pack_unary<double, float>(const double*, int64_t, int64_t, int64_t, int64_t, float*, float, float, int);
template int64_t pack_unary<double, double>(const double*, int64_t, int64_t, int64_t, int64_t, double*, double, double, int);

}  // namespace deeplab_crf
