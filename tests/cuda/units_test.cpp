// Parts of the CUDA engine by themselves, run by test_cuda_units.py.
//
//   units_test                    prints a line for each check and ends with 1 if one failed
//   units_test f16 | bf16         floats from the standard input, 16-bit numbers to the standard output
//   units_test from_f16 | from_bf16     the other way round
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "lattice/keys.h"
#include "support/cuda/half.cuh"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {
namespace {

template <class From, class To>
int convert(To (*converted)(From)) {
  From in;
  while (std::fread(&in, sizeof in, 1, stdin) == 1) {
    const To out = converted(in);
    if (std::fwrite(&out, sizeof out, 1, stdout) != 1) return 1;
  }
  return 0;
}

template <class E>
E narrowed(float value) {
  E result;
  narrow(value, result);
  return result;
}

// Every field lies in a word, and none in another's bits.
bool fields_fit(const KeyLayout& layout) {
  for (int i = 0; i < layout.dims; ++i) {
    if (layout.shift[i] < 0 || layout.shift[i] > 63 || layout.word[i] < 0 || layout.word[i] >= layout.words) return false;
    if (i > 0 && layout.word[i] == layout.word[i - 1] && layout.shift[i] <= layout.shift[i - 1]) return false;
  }
  return layout.words <= layout.dims;
}

KeyLayout layout_of(int64_t low, int64_t high, int dims = geometry::kMaxDimensions) {
  int64_t lows[geometry::kMaxDimensions], highs[geometry::kMaxDimensions];
  for (int i = 0; i < dims; ++i) {
    lows[i] = low;
    highs[i] = high;
  }
  return KeyLayout(dims, lows, highs);
}

bool refuses(int64_t items) {
  try {
    blocks_for(items);
  } catch (const InvalidArgument& error) {
    return std::string(error.what()).find("got " + std::to_string(items)) != std::string::npos;
  }
  return false;
}

int run() {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();
  int failures = 0;
  const auto check = [&](const char* name, bool right) {
    std::printf("%s: %s\n", name, right ? "ok" : "FAILED");
    failures += !right;
  };
  const KeyLayout usual = layout_of(-100, 155, 5);
  check("fields of 8 bits", usual.words == 1 && usual.shift[1] == 8 && usual.shift[4] == 32);
  check("fields of 9 bits", layout_of(-100, 156, 5).shift[1] == 9);
  check("fields of 33 bits", layout_of(0, int64_t{1} << 32, 3).words == 3);
  check("a reversed range", fields_fit(layout_of(5, -5)));
  check("a range of one", layout_of(7, 7, 2).shift[1] == 1);
  check("the widest range", fields_fit(layout_of(kLeast, kMost)) && layout_of(kLeast, kMost).words == geometry::kMaxDimensions);
  check("the widest range reversed", fields_fit(layout_of(kMost, kLeast)));
  check("a range from the least", fields_fit(layout_of(kLeast, 0)));

  check("no blocks", blocks_for(0) == 0);
  check("one block", blocks_for(1) == 1 && blocks_for(kThreads) == 1);
  check("two blocks", blocks_for(kThreads + 1) == 2);
  check("the most blocks", blocks_for(kMaxThreads) == 2147483647u);
  check("too many blocks", refuses(kMaxThreads + 1) && refuses(int64_t{1} << 40) && refuses(kMost) && refuses(-1));
  return failures == 0 ? 0 : 1;
}

int run(const std::string& mode) {
  if (mode == "f16") return convert<float, Float16>(narrowed<Float16>);
  if (mode == "bf16") return convert<float, BFloat16>(narrowed<BFloat16>);
  if (mode == "from_f16") return convert<Float16, float>(widened);
  if (mode == "from_bf16") return convert<BFloat16, float>(widened);
  return 2;
}

}  // namespace
}  // namespace deeplab_crf::cuda

int main(int count, char** words) { return count > 1 ? deeplab_crf::cuda::run(words[1]) : deeplab_crf::cuda::run(); }
