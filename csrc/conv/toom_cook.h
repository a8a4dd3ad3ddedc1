// The one-dimensional minimal filtering algorithms F(m, 3), m = 1..4, of Winograd convolution
// (Winograd 1980; Lavin & Gray 2016), as compile-time matrices for host and device.
//
// y = A^T [(G g) * (D d)]: m outputs y_i = sum_k g_k d_(i+k) of a 3-tap correlation from m + 2
// inputs and m + 2 products, one for each point 0, 1, infinity, -1, 2, -2, of which F(m, 3) takes
// the first m + 2. G does not depend on m, so tiles of all sizes share one set of transformed
// weights; a smaller tile uses fewer of its matrices.
#pragma once

#include <cstdint>

namespace deeplab_crf::conv {

constexpr int kTaps = 3;
constexpr int kLargestTile = 4;
constexpr int kMaxPoints = kLargestTile + 2;
constexpr int kInfinity = 2;  // index of the point at infinity

constexpr int points_of(int tile) { return tile + 2; }

constexpr double kPoint[kMaxPoints] = {0, 1, 0, -1, 2, -2};
// Row i of G is kScale[i] [1, p, p^2], and [0, 0, 1] at infinity. These scales make the other
// matrices of F(4, 3) integer.
constexpr double kScale[kMaxPoints] = {1.0 / 4, -1.0 / 6, 1, -1.0 / 6, 1.0 / 24, 1.0 / 24};

struct WeightMatrix {
  float at[kMaxPoints][kTaps];
};

constexpr WeightMatrix make_weight_matrix() {
  WeightMatrix g{};
  for (int i = 0; i < kMaxPoints; ++i) {
    double power = kScale[i];
    for (int k = 0; k < kTaps; ++k) {
      g.at[i][k] = static_cast<float>(i == kInfinity ? (k == kTaps - 1 ? 1 : 0) : power);
      power *= kPoint[i];
    }
  }
  return g;
}

template <int Tile>
struct DataMatrix {
  float at[Tile + 2][Tile + 2];
};

// Row i holds the coefficients of prod_(q != p) (z - q), ascending, over the finite points q of
// F(Tile, 3), divided by the value at p and by kScale; at infinity, those of the product over all
// finite points.
template <int Tile>
constexpr DataMatrix<Tile> make_data_matrix() {
  DataMatrix<Tile> d{};
  for (int i = 0; i < points_of(Tile); ++i) {
    double product[kMaxPoints + 1] = {1};
    double value = 1;
    int degree = 0;
    for (int q = 0; q < points_of(Tile); ++q) {
      if (q == i || q == kInfinity) continue;
      ++degree;
      for (int k = degree; k >= 0; --k) product[k] = (k > 0 ? product[k - 1] : 0) - kPoint[q] * product[k];
      value *= kPoint[i] - kPoint[q];
    }
    for (int k = 0; k < points_of(Tile); ++k) {
      d.at[i][k] = static_cast<float>(i == kInfinity ? product[k] : product[k] / (value * kScale[i]));
    }
  }
  return d;
}

template <int Tile>
struct OutputMatrix {
  float at[Tile][Tile + 2];
};

// Column i is 1, p, p^2 ...; at infinity it has only the last output.
template <int Tile>
constexpr OutputMatrix<Tile> make_output_matrix() {
  OutputMatrix<Tile> a{};
  for (int i = 0; i < points_of(Tile); ++i) {
    double power = 1;
    for (int k = 0; k < Tile; ++k) {
      a.at[k][i] = static_cast<float>(i == kInfinity ? (k == Tile - 1 ? 1 : 0) : power);
      power *= kPoint[i];
    }
  }
  return a;
}

}  // namespace deeplab_crf::conv
