#include "lattice/lattice.h"

#include <pybind11/stl.h>

#include "bindings/module.h"
#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "lattice/cpu/build.h"
#include "lattice/geometry.h"
#include "lattice/image_features.h"

namespace deeplab_crf::bindings {
namespace {

namespace py = pybind11;

template <class T>
LatticeView<T> make_view(int32_t dims, int64_t num_points, int64_t num_vertices, int64_t num_ghosts, const py::dict& arrays) {
  const auto address = [&](const char* name) { return arrays[name].cast<uintptr_t>(); };
  LatticeView<T> view;
  view.dims = dims;
  view.num_points = num_points;
  view.num_vertices = num_vertices;
  view.num_ghosts = num_ghosts;
  view.rows = pointer<const int32_t>(address("rows"));
  view.weights = pointer<const T>(address("weights"));
  view.owned_begin = pointer<const int32_t>(address("owned_begin"));
  view.ghost_begin = pointer<const int32_t>(address("ghost_begin"));
  view.ghost_owner = pointer<const int32_t>(address("ghost_owner"));
  view.ghost_order = pointer<const int32_t>(address("ghost_order"));
  view.chains = pointer<const int32_t>(address("chains"));
  view.chain_lengths = pointer<const int64_t>(address("chain_lengths"));
  return view;
}

template <class T>
void connect(LatticeBuilder<T>& builder, const py::dict& arrays) {
  const auto address = [&](const char* name) { return arrays[name].cast<uintptr_t>(); };
  const LatticeArrays out{
      pointer<int32_t>(address("rows")),          pointer<int32_t>(address("owned_begin")),
      pointer<int32_t>(address("ghost_begin")),   pointer<int32_t>(address("ghost_owner")),
      pointer<int32_t>(address("ghost_order")),   pointer<int32_t>(address("chains")),
      pointer<int64_t>(address("chain_lengths")),
  };
  const ReleasedGil released;
  builder.connect(out);
}

template <class From, class T>
void fill_image_features(uintptr_t image, const std::tuple<int64_t, int64_t, int64_t>& shape, uintptr_t order,
                         std::pair<T, T> widths_xy, uintptr_t channel_widths, uintptr_t out, int threads) {
  const ReleasedGil released;
  const ImageFeatureArguments<From, T> arguments{pointer<const From>(image),
                                                 std::get<0>(shape),
                                                 std::get<1>(shape),
                                                 std::get<2>(shape),
                                                 pointer<const int32_t>(order),
                                                 widths_xy.first,
                                                 widths_xy.second,
                                                 pointer<const T>(channel_widths),
                                                 pointer<T>(out)};
  image_features(arguments, threads);
}

template <class From, class T>
void register_image_features(py::module_& module, const std::string& suffix) {
  module.def(("image_features_" + suffix).c_str(), &fill_image_features<From, T>, py::arg("image"), py::arg("shape"),
             py::arg("order"), py::arg("widths_xy"), py::arg("channel_widths"), py::arg("out"), py::arg("threads"));
}

template <class T>
void register_type(py::module_& module, const std::string& suffix) {
  using Builder = LatticeBuilder<T>;
  py::class_<Builder>(module, ("LatticeBuilder" + suffix).c_str())
      .def(py::init([](uintptr_t features, int64_t num_points, int32_t dims, int64_t point_stride, int64_t dim_stride,
                       bool touch_origin, int threads) {
             const ReleasedGil released;
             return std::make_unique<Builder>(
                 FeatureView<T>{pointer<const T>(features), num_points, dims, point_stride, dim_stride}, touch_origin, threads);
           }),
           py::arg("features"), py::arg("num_points"), py::arg("dims"), py::arg("point_stride"), py::arg("dim_stride"),
           py::arg("touch_origin"), py::arg("threads"))
      .def(
          "embed",
          [](Builder& builder, uintptr_t rows, uintptr_t weights) {
            const ReleasedGil released;
            builder.embed(pointer<int32_t>(rows), pointer<T>(weights));
          },
          py::arg("rows"), py::arg("weights"))
      .def("connect", &connect<T>, py::arg("arrays"))
      .def_property_readonly("num_vertices", &Builder::num_vertices)
      .def_property_readonly("num_ghosts", &Builder::num_ghosts);

  py::class_<LatticeView<T>>(module, ("LatticeView" + suffix).c_str())
      .def(py::init(&make_view<T>), py::arg("dims"), py::arg("num_points"), py::arg("num_vertices"), py::arg("num_ghosts"),
           py::arg("arrays"))
      .def(
          "filter",
          [](const LatticeView<T>& view, uintptr_t in, uintptr_t out, int64_t channels, uintptr_t norm_in, uintptr_t norm_out,
             uintptr_t workspace, bool transpose, int threads) {
            const ReleasedGil released;
            const FilterArguments<T> arguments{&view,
                                               pointer<const T>(in),
                                               pointer<T>(out),
                                               channels,
                                               pointer<const T>(norm_in),
                                               pointer<const T>(norm_out),
                                               pointer<T>(workspace),
                                               transpose};
            filter(arguments, threads);
          },
          py::arg("values"), py::arg("out"), py::arg("channels"), py::arg("norm_in"), py::arg("norm_out"), py::arg("workspace"),
          py::arg("transpose"), py::arg("threads"))
      .def(
          "workspace_size", [](const LatticeView<T>& view, int64_t channels) { return view.num_rows() * row_stride<T>(channels); },
          py::arg("channels"));
}

}  // namespace

void register_lattice(py::module_& module) {
  module.attr("MAX_DIMENSIONS") = geometry::kMaxDimensions;
  module.def("chunk_count", &chunk_count, py::arg("num_points"));
  register_type<float>(module, "F32");
  register_type<double>(module, "F64");
  register_image_features<uint8_t, float>(module, "u8_f32");
  register_image_features<float, float>(module, "f32_f32");
  register_image_features<uint8_t, double>(module, "u8_f64");
  register_image_features<double, double>(module, "f64_f64");
}

}  // namespace deeplab_crf::bindings
