#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/conv_fields.h"
#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "conv/cpu/direct.h"
#include "conv/cpu/epilogue.h"
#include "conv/cpu/fingerprint.h"
#include "conv/cpu/layout.h"
#include "conv/cpu/shifted.h"
#include "conv/cpu/winograd.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;
using py::arg;
using Unlocked = py::call_guard<ReleasedGil>;

// Address of the weight, its strides, rows, columns.
using BranchFields = std::tuple<uintptr_t, Strides, conv::Axis, conv::Axis>;
using Branches = std::vector<BranchFields>;

conv::ShiftedSum make_sum(const conv::Shape& shape, const Branches& fields) {
  std::vector<conv::Branch> branches;
  for (const auto& [weight, strides, rows, columns] : fields) {
    conv::Branch branch{.weight = pointer<const float>(weight), .strides = {}, .rows = rows, .columns = columns};
    std::copy(strides.begin(), strides.end(), branch.strides);
    branches.push_back(branch);
  }
  return {shape, branches};
}

void register_convolution(py::module_& module) {
  module.def("winograd_weights_size", conv::winograd_weights_size, arg("shape"));
  module.def("winograd_workspace_size", conv::winograd_workspace_size, arg("shape"));
  module.def("winograd_products", conv::winograd_products, arg("shape"));
  module.def("direct_weights_size", conv::direct_weights_size, arg("shape"));
  module.def("direct_products", conv::direct_products, arg("shape"));
  const auto def_pack = [&](const char* name, void (*pack)(const conv::Shape&, const float*, const int64_t*, float*, int)) {
    module.def(
        name,
        [pack](const conv::Shape& shape, uintptr_t weight, const Strides& strides, uintptr_t out, int threads) {
          pack(shape, pointer<const float>(weight), strides.data(), pointer<float>(out), threads);
        },
        arg("shape"), arg("weight"), arg("strides"), arg("out"), arg("threads"), Unlocked());
  };
  def_pack("winograd_pack", conv::pack_winograd_weights);
  def_pack("direct_pack", conv::pack_direct_weights);
  module.def(
      "winograd",
      [](const conv::Shape& shape, uintptr_t x, uintptr_t packed, const conv::Epilogue& epilogue, uintptr_t out,
         uintptr_t workspace, int threads) {
        return conv::winograd(shape, pointer<const float>(x), pointer<const float>(packed), epilogue, pointer<float>(out),
                              pointer<float>(workspace), threads);
      },
      arg("shape"), arg("x"), arg("packed"), arg("epilogue"), arg("out"), arg("workspace"), arg("threads"), Unlocked());
  module.def(
      "direct",
      [](const conv::Shape& shape, uintptr_t x, uintptr_t packed, const conv::Epilogue& epilogue, uintptr_t out, int threads) {
        conv::direct(shape, pointer<const float>(x), pointer<const float>(packed), epilogue, pointer<float>(out), threads);
      },
      arg("shape"), arg("x"), arg("packed"), arg("epilogue"), arg("out"), arg("threads"), Unlocked());
}

void register_shifted(py::module_& module) {
  module.def(
      "shifted_weights_size",
      [](const conv::Shape& shape, const Branches& branches) { return make_sum(shape, branches).weights_size(); }, arg("shape"),
      arg("branches"));
  module.def(
      "shifted_products",
      [](const conv::Shape& shape, const Branches& branches) { return make_sum(shape, branches).padded_products(); }, arg("shape"),
      arg("branches"));
  module.def(
      "shifted_pack",
      [](const conv::Shape& shape, const Branches& branches, uintptr_t out, int threads) {
        make_sum(shape, branches).pack_weights(pointer<float>(out), threads);
      },
      arg("shape"), arg("branches"), arg("out"), arg("threads"), Unlocked());
  module.def(
      "shifted_sum",
      [](const conv::Shape& shape, const Branches& branches, uintptr_t x, uintptr_t packed, const conv::Epilogue& epilogue,
         uintptr_t out, int threads) {
        const conv::ShiftedSum sum = make_sum(shape, branches);
        sum.run(pointer<const float>(x), pointer<const float>(packed), epilogue, pointer<float>(out), threads);
      },
      arg("shape"), arg("branches"), arg("x"), arg("packed"), arg("epilogue"), arg("out"), arg("threads"), Unlocked());
}

}  // namespace

void register_conv(py::module_& module) {
  register_convolution(module);
  register_shifted(module);
  module.def(
      "add_relu",
      [](uintptr_t values, uintptr_t residual, int64_t count, int threads) {
        conv::add_relu(pointer<float>(values), pointer<const float>(residual), count, threads);
      },
      arg("values"), arg("residual"), arg("count"), arg("threads"), Unlocked());
  module.def(
      "transpose_planes",
      [](uintptr_t values, int64_t planes, int64_t rows, int64_t columns, uintptr_t out, int threads) {
        conv::transpose_planes(pointer<const float>(values), planes, rows, columns, pointer<float>(out), threads);
      },
      arg("values"), arg("planes"), arg("rows"), arg("columns"), arg("out"), arg("threads"), Unlocked());
  module.def(
      "fingerprint",
      [](uintptr_t values, int64_t count, int threads) { return conv::fingerprint(pointer<const float>(values), count, threads); },
      arg("values"), arg("count"), arg("threads"), Unlocked());
}

}  // namespace deeplab_crf::bindings
