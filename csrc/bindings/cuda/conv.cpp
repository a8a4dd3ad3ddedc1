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

using bindings::Strides;

using OffsetFields = std::vector<std::tuple<int32_t, int32_t>>;
using Unlocked = py::call_guard<ReleasedGil>;

WinogradTiles make_tiles(const conv::Shape& shape) {
  const WinogradTiles tiles(shape);
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

void register_winograd(py::module_& module) {
  module.def(
      "winograd_tiles",
      [](const conv::Shape& shape) {
        const WinogradTiles tiles = make_tiles(shape);
        return py::make_tuple(tiles.rows.size, tiles.columns.size, tiles.count());
      },
      py::arg("shape"));
  module.def(
      "winograd_weights",
      [](const QueueFields& queue, const conv::Shape& shape, uintptr_t weight, const Strides& strides, uintptr_t out) {
        winograd_weights(make_tiles(shape), pointer<const float>(weight), strides.data(), pointer<float>(out), make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("weight"), py::arg("strides"), py::arg("out"), Unlocked());
  module.def(
      "winograd_inputs",
      [](const QueueFields& queue, const conv::Shape& shape, int64_t first_tile, int64_t num_tiles, uintptr_t x, uintptr_t out) {
        winograd_inputs(make_tiles(shape), {.first = first_tile, .count = num_tiles}, pointer<const float>(x), pointer<float>(out),
                        make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("first_tile"), py::arg("num_tiles"), py::arg("x"), py::arg("out"), Unlocked());
  module.def(
      "winograd_outputs",
      [](const QueueFields& queue, const conv::Shape& shape, int64_t first_tile, int64_t num_tiles, uintptr_t products,
         const conv::Epilogue& epilogue, uintptr_t out) {
        winograd_outputs(make_tiles(shape), {.first = first_tile, .count = num_tiles}, pointer<const float>(products), epilogue,
                         pointer<float>(out), make_queue(queue));
      },
      py::arg("queue"), py::arg("shape"), py::arg("first_tile"), py::arg("num_tiles"), py::arg("products"), py::arg("epilogue"),
      py::arg("out"), Unlocked());
}

template <class E>
void register_type(py::module_& module, const std::string& suffix) {
  module.def(("conv_epilogue_" + suffix).c_str(),
             [](const QueueFields& queue, uintptr_t values, uintptr_t bias, uintptr_t residual, bool relu, int64_t count,
                int64_t channels, int64_t inner) {
               epilogue<E>({.values = pointer<E>(values),
                            .bias = pointer<const E>(bias),
                            .residual = pointer<const E>(residual),
                            .count = count,
                            .channels = channels,
                            .inner = inner,
                            .relu = relu},
                           make_queue(queue));
             },
             py::arg("queue"), py::arg("values"), py::arg("bias"), py::arg("residual"), py::arg("relu"), py::arg("count"),
             py::arg("channels"), py::arg("inner"), Unlocked());
  module.def(("gather_shifted_" + suffix).c_str(),
             [](const QueueFields& queue, uintptr_t products, uintptr_t bias, uintptr_t out, const OffsetFields& offsets,
                int64_t batch, int64_t height, int64_t width, int64_t classes, bool channels_last) {
               gather_shifted<E>({.products = pointer<const E>(products),
                                  .bias = pointer<const typename GatherArguments<E>::Sum>(bias),
                                  .out = pointer<E>(out),
                                  .batch = batch,
                                  .height = height,
                                  .width = width,
                                  .classes = classes,
                                  .image_stride = height * width * classes,
                                  .pixel_stride = channels_last ? classes : 1,
                                  .class_stride = channels_last ? 1 : height * width,
                                  .offsets = make_offsets(offsets)},
                                 make_queue(queue));
             },
             py::arg("queue"), py::arg("products"), py::arg("bias"), py::arg("out"), py::arg("offsets"), py::arg("batch"),
             py::arg("height"), py::arg("width"), py::arg("classes"), py::arg("channels_last"), Unlocked());
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
