// What crosses between Python and the CUDA engine, and one registration function per domain.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "bindings/pointers.h"
#include "bindings/released_gil.h"
#include "lattice/cuda/structure.h"
#include "support/cuda/device.h"

namespace deeplab_crf::cuda {

namespace py = pybind11;
using bindings::pointer;
using bindings::ReleasedGil;

using Triple = std::tuple<int64_t, int64_t, int64_t>;
// Device, and stream as an address.
using QueueFields = std::tuple<int, uintptr_t>;
// Address, shape, strides in elements.
using FeatureFields = std::tuple<uintptr_t, Triple, Triple>;
// Addresses of rows, weights and structure; elements of the structure.
using LatticeFields = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t>;

inline Queue make_queue(const QueueFields& fields) { return {std::get<0>(fields), pointer<void>(std::get<1>(fields))}; }

template <class T>
DeviceLattice<T> make_lattice(const LatticeFields& fields, const Triple& shape) {
  const auto& [rows, weights, structure, length] = fields;
  return {sizes_of_structure(std::get<0>(shape), std::get<1>(shape), std::get<2>(shape), length), pointer<const int32_t>(rows),
          pointer<const T>(weights), pointer<const int32_t>(structure)};
}

void register_conv(py::module_& module);
void register_lattice(py::module_& module);
void register_mean_field(py::module_& module);

}  // namespace deeplab_crf::cuda
