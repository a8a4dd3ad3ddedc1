#include <string>
#include <vector>

#include "bindings/conv_fields.h"
#include "bindings/cuda/fields.h"
#include "conv/cuda/epilogue.h"
#include "conv/cuda/shifted.h"
#include "conv/cuda/winograd.h"
#include "conv/toom_cook.h"
#include "support/cuda/half.h"
#include "support/errors.h"

namespace deeplab_crf::cuda {
namespace {

using bindings::EpilogueFields;
using bindings::make_epilogue;
using bindings::make_shape;
using bindings::ShapeFields;
using bindings::Strides;

// First tile, and how many.
using RangeFields = std::tuple<int64_t, int64_t>;
// Elements, channels, neighbours that share a channel.
using LayoutFields = std::tuple<int64_t, int64_t, int64_t>;
// Images, height, width, classes.
using MapFields = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using OffsetFields = std::vector<std::tuple<int32_t, int32_t>>;

WinogradTiles make_tiles(const ShapeFields& fields) {
  const WinogradTiles tiles(make_shape(fields));
  for (const conv::Axis& axis : {tiles.shape.rows, tiles.shape.columns}) {
    if (axis.kernel != conv::kTaps || axis.stride != 1) {
      throw InvalidArgument("the kernel size must be 3 and the stride 1; got " + std::to_string(axis.kernel) + " and " +
                            std::to_string(axis.stride));
    }
  }
  return tiles;
}

Offsets make_offsets(const OffsetFields& fields) {
  if (fields.size() > kMaxOffsets) {
    throw InvalidArgument("offsets must be at most MAX_OFFSETS, " + std::to_string(kMaxOffsets) + "; got " +
                          std::to_string(fields.size()));
  }
  Offsets offsets{static_cast<int32_t>(fields.size()), {}, {}};
  for (size_t i = 0; i < fields.size(); ++i) std::tie(offsets.rows[i], offsets.columns[i]) = fields[i];
  return offsets;
}

py::tuple describe_tiles(const ShapeFields& shape) {
  const WinogradTiles tiles = make_tiles(shape);
  return py::make_tuple(tiles.rows.size, tiles.columns.size, tiles.count());
}

void register_winograd(py::module_& module) {
  module.def("winograd_tiles", &describe_tiles, py::arg("shape"));
  module.def(
      "winograd_weights",
      [](const QueueFields& queue, const ShapeFields& shape, uintptr_t weight, const Strides& strides, uintptr_t out) {
        const ReleasedGil released;
        winograd_weights(make_tiles(shape), pointer<const float>(weight), strides.data(), pointer<float>(out), make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("weight"), py::arg("strides"), py::arg("out"));
  module.def(
      "winograd_inputs",
      [](const QueueFields& queue, const ShapeFields& shape, const RangeFields& range, uintptr_t x, uintptr_t out) {
        const ReleasedGil released;
        winograd_inputs(make_tiles(shape), {std::get<0>(range), std::get<1>(range)}, pointer<const float>(x), pointer<float>(out),
                        make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("tiles"), py::arg("x"), py::arg("out"));
  module.def(
      "winograd_outputs",
      [](const QueueFields& queue, const ShapeFields& shape, const RangeFields& range, uintptr_t products,
         const EpilogueFields& epilogue, uintptr_t out) {
        const ReleasedGil released;
        winograd_outputs(make_tiles(shape), {std::get<0>(range), std::get<1>(range)}, pointer<const float>(products),
                         make_epilogue(epilogue), pointer<float>(out), make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("tiles"), py::arg("products"), py::arg("epilogue"), py::arg("out"));
}

template <class E>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(("conv_epilogue_" + suffix).c_str(),
             [](const QueueFields& queue, const LayoutFields& layout, uintptr_t values, const EpilogueFields& fields) {
               const auto& [count, channels, inner] = layout;
               const auto& [bias, residual, relu] = fields;
               const ReleasedGil released;
               epilogue<E>({pointer<E>(values), pointer<const E>(bias), pointer<const E>(residual), count, channels, inner, relu},
                           make_queue(queue));
             },
             py::arg("queue"), py::arg("layout"), py::arg("values"), py::arg("epilogue"));
  module.def(("gather_shifted_" + suffix).c_str(),
             [](const QueueFields& queue, const MapFields& map, const OffsetFields& offsets, uintptr_t products, uintptr_t bias,
                uintptr_t out, const Triple& strides) {
               GatherArguments<E> a{};
               a.products = pointer<const E>(products);
               a.bias = pointer<const typename GatherArguments<E>::Sum>(bias);
               a.out = pointer<E>(out);
               std::tie(a.batch, a.height, a.width, a.classes) = map;
               std::tie(a.image_stride, a.pixel_stride, a.class_stride) = strides;
               a.offsets = make_offsets(offsets);
               const ReleasedGil released;
               gather_shifted(a, make_queue(queue));
             },
             py::arg("queue"), py::arg("map"), py::arg("offsets"), py::arg("products"), py::arg("bias"), py::arg("out"),
             py::arg("strides"));
}

}  // namespace

void register_conv(py::module_& module) {
  module.attr("MAX_OFFSETS") = kMaxOffsets;
  register_winograd(module);
  register_type<float>(module, "f32");
  register_type<double>(module, "f64");
  register_type<Float16>(module, "f16");
  register_type<BFloat16>(module, "bf16");
}

}  // namespace deeplab_crf::cuda
