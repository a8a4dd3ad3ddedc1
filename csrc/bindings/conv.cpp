#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "bindings/conv_fields.h"
#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "conv/cpu/kernels.h"
#include "conv/direct.h"
#include "conv/epilogue.h"
#include "conv/fingerprint.h"
#include "conv/shifted.h"
#include "conv/winograd.h"
#include "support/parallel.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;

// Address of the weight, its strides, rows, columns.
using BranchFields = std::tuple<uintptr_t, Strides, AxisFields, AxisFields>;

conv::ShiftedSum make_sum(const ShapeFields& shape, const std::vector<BranchFields>& fields) {
  std::vector<conv::Branch> branches;
  for (const auto& [weight, strides, rows, columns] : fields) {
    conv::Branch branch{pointer<const float>(weight), {}, make_axis(rows), make_axis(columns)};
    std::copy(strides.begin(), strides.end(), branch.strides);
    branches.push_back(branch);
  }
  return {make_shape(shape), branches};
}

void transpose(uintptr_t in, const std::tuple<int64_t, int64_t, int64_t>& shape, uintptr_t out, int threads) {
  const auto [planes, rows, columns] = shape;
  constexpr int64_t kColumns = 64;
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  parallel_for(threads, planes * blocks, [&, planes_rows = rows, planes_columns = columns](int64_t task) {
    const int64_t plane = task / blocks * planes_rows * planes_columns, first = task % blocks * kColumns;
    const int64_t count = std::min(kColumns, planes_columns - first);
    conv::product_kernels().transpose(pointer<const float>(in) + plane + first, planes_rows, count, planes_columns,
                                      pointer<float>(out) + plane + first * planes_rows, planes_rows);
  });
}

void register_winograd(py::module_& module) {
  module.def(
      "winograd_weights_size", [](const ShapeFields& shape) { return conv::winograd_weights_size(make_shape(shape)); },
      py::arg("shape"));
  module.def(
      "winograd_workspace_size", [](const ShapeFields& shape) { return conv::winograd_workspace_size(make_shape(shape)); },
      py::arg("shape"));
  module.def(
      "winograd_products", [](const ShapeFields& shape) { return conv::winograd_products(make_shape(shape)); }, py::arg("shape"));
  module.def(
      "winograd_transform",
      [](const ShapeFields& shape, uintptr_t weight, const Strides& strides, uintptr_t out, int threads) {
        const ReleasedGil released;
        conv::transform_winograd_weights(make_shape(shape), pointer<const float>(weight), strides.data(), pointer<float>(out),
                                         threads);
      },
      py::arg("shape"), py::arg("weight"), py::arg("strides"), py::arg("out"), py::arg("threads"));
  module.def(
      "winograd",
      [](const ShapeFields& shape, uintptr_t x, uintptr_t transformed, const EpilogueFields& epilogue, uintptr_t out,
         uintptr_t workspace, int threads) {
        const ReleasedGil released;
        return conv::winograd(make_shape(shape), pointer<const float>(x), pointer<const float>(transformed),
                              make_epilogue(epilogue), pointer<float>(out), pointer<float>(workspace), threads);
      },
      py::arg("shape"), py::arg("x"), py::arg("transformed"), py::arg("epilogue"), py::arg("out"), py::arg("workspace"),
      py::arg("threads"));
}

void register_direct(py::module_& module) {
  module.def(
      "direct_weights_size", [](const ShapeFields& shape) { return conv::direct_weights_size(make_shape(shape)); },
      py::arg("shape"));
  module.def(
      "direct_products", [](const ShapeFields& shape) { return conv::direct_products(make_shape(shape)); }, py::arg("shape"));
  module.def(
      "direct_pack",
      [](const ShapeFields& shape, uintptr_t weight, const Strides& strides, uintptr_t out, int threads) {
        const ReleasedGil released;
        conv::pack_direct_weights(make_shape(shape), pointer<const float>(weight), strides.data(), pointer<float>(out), threads);
      },
      py::arg("shape"), py::arg("weight"), py::arg("strides"), py::arg("out"), py::arg("threads"));
  module.def(
      "direct",
      [](const ShapeFields& shape, uintptr_t x, uintptr_t packed, const EpilogueFields& epilogue, uintptr_t out, int threads) {
        const ReleasedGil released;
        conv::direct(make_shape(shape), pointer<const float>(x), pointer<const float>(packed), make_epilogue(epilogue),
                     pointer<float>(out), threads);
      },
      py::arg("shape"), py::arg("x"), py::arg("packed"), py::arg("epilogue"), py::arg("out"), py::arg("threads"));
}

void register_shifted(py::module_& module) {
  module.def(
      "shifted_weights_size",
      [](const ShapeFields& shape, const std::vector<BranchFields>& branches) { return make_sum(shape, branches).weights_size(); },
      py::arg("shape"), py::arg("branches"));
  module.def(
      "shifted_products",
      [](const ShapeFields& shape, const std::vector<BranchFields>& branches) {
        return make_sum(shape, branches).padded_products();
      },
      py::arg("shape"), py::arg("branches"));
  module.def(
      "shifted_pack",
      [](const ShapeFields& shape, const std::vector<BranchFields>& branches, uintptr_t out, int threads) {
        const conv::ShiftedSum sum = make_sum(shape, branches);
        const ReleasedGil released;
        sum.pack_weights(pointer<float>(out), threads);
      },
      py::arg("shape"), py::arg("branches"), py::arg("out"), py::arg("threads"));
  module.def(
      "shifted_sum",
      [](const ShapeFields& shape, const std::vector<BranchFields>& branches, uintptr_t x, uintptr_t packed,
         const EpilogueFields& epilogue, uintptr_t out, int threads) {
        const conv::ShiftedSum sum = make_sum(shape, branches);
        const ReleasedGil released;
        sum.run(pointer<const float>(x), pointer<const float>(packed), make_epilogue(epilogue), pointer<float>(out), threads);
      },
      py::arg("shape"), py::arg("branches"), py::arg("x"), py::arg("packed"), py::arg("epilogue"), py::arg("out"),
      py::arg("threads"));
}

}  // namespace

void register_conv(py::module_& module) {
  register_winograd(module);
  register_direct(module);
  register_shifted(module);
  module.def(
      "add_relu",
      [](uintptr_t values, uintptr_t residual, int64_t count, int threads) {
        const ReleasedGil released;
        conv::add_relu(pointer<float>(values), pointer<const float>(residual), count, threads);
      },
      py::arg("values"), py::arg("residual"), py::arg("count"), py::arg("threads"));
  module.def(
      "transpose_planes",
      [](uintptr_t in, const std::tuple<int64_t, int64_t, int64_t>& shape, uintptr_t out, int threads) {
        const ReleasedGil released;
        transpose(in, shape, out, threads);
      },
      py::arg("values"), py::arg("shape"), py::arg("out"), py::arg("threads"));
  module.def(
      "fingerprint",
      [](uintptr_t values, int64_t count, int threads) {
        const ReleasedGil released;
        return conv::fingerprint(pointer<const float>(values), count, threads);
      },
      py::arg("values"), py::arg("count"), py::arg("threads"));
}

}  // namespace deeplab_crf::bindings
