// How convolutions cross between Python and the kernels of both engines.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "bindings/pointers.h"
#include "conv/shapes.h"

namespace deeplab_crf::bindings {

// in, out, kernel, stride, padding, dilation.
using AxisFields = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// batch, channels, filters, rows, columns.
using ShapeFields = std::tuple<int64_t, int64_t, int64_t, AxisFields, AxisFields>;
// Addresses of bias and residual, relu.
using EpilogueFields = std::tuple<uintptr_t, uintptr_t, bool>;
using Strides = std::array<int64_t, 4>;

inline conv::Axis make_axis(const AxisFields& fields) {
  const auto [in, out, kernel, stride, padding, dilation] = fields;
  return {in, out, kernel, stride, padding, dilation};
}

inline conv::Shape make_shape(const ShapeFields& fields) {
  const auto& [batch, channels, filters, rows, columns] = fields;
  return {batch, channels, filters, make_axis(rows), make_axis(columns)};
}

inline conv::Epilogue make_epilogue(const EpilogueFields& fields) {
  const auto [bias, residual, relu] = fields;
  return {pointer<const float>(bias), pointer<const float>(residual), relu};
}

}  // namespace deeplab_crf::bindings
