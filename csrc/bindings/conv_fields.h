// Convolutions as they cross from Python, for the bindings of both backends: tuples of numbers,
// field by field. Axis and Shape are the NamedTuples of deeplab_crf/ops/conv/shapes.py; an epilogue
// is (bias, residual, relu), addresses or 0.
//
// The casters of std::tuple take 0.75 us for a Shape, and 1.7 us if it is a NamedTuple; these take 0.11 us.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "bindings/pointers.h"
#include "conv/shapes.h"

namespace deeplab_crf::bindings {

using Strides = std::array<int64_t, 4>;

inline bool load_field(PyObject* source, int64_t& field) {
  field = PyLong_AsLongLong(source);
  if (field != -1 || PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  return false;
}

inline bool load_field(PyObject* source, bool& field) {
  field = source == Py_True;
  return PyBool_Check(source);
}

inline bool load_field(PyObject* source, const float*& field) {
  int64_t address = 0;
  const bool loaded = load_field(source, address);
  field = pointer<const float>(static_cast<uintptr_t>(address));
  return loaded;
}

bool load_field(PyObject* source, conv::Axis& axis);

template <class... Fields>
bool load_fields(PyObject* source, Fields&... fields) {
  if (!PyTuple_Check(source) || PyTuple_GET_SIZE(source) != sizeof...(Fields)) return false;
  Py_ssize_t i = 0;
  return (load_field(PyTuple_GET_ITEM(source, i++), fields) && ...);
}

inline bool load_field(PyObject* source, conv::Axis& axis) {
  return load_fields(source, axis.in, axis.out, axis.kernel, axis.stride, axis.padding, axis.dilation);
}

}  // namespace deeplab_crf::bindings

namespace pybind11::detail {

template <>
struct type_caster<deeplab_crf::conv::Axis> {
  PYBIND11_TYPE_CASTER(deeplab_crf::conv::Axis, const_name("Axis"));
  bool load(handle source, bool) { return deeplab_crf::bindings::load_field(source.ptr(), value); }
};

template <>
struct type_caster<deeplab_crf::conv::Shape> {
  PYBIND11_TYPE_CASTER(deeplab_crf::conv::Shape, const_name("Shape"));
  bool load(handle source, bool) {
    return deeplab_crf::bindings::load_fields(source.ptr(), value.batch, value.channels, value.filters, value.rows, value.columns);
  }
};

template <>
struct type_caster<deeplab_crf::conv::Epilogue> {
  PYBIND11_TYPE_CASTER(deeplab_crf::conv::Epilogue, const_name("Epilogue"));
  bool load(handle source, bool) {
    return deeplab_crf::bindings::load_fields(source.ptr(), value.bias, value.residual, value.relu);
  }
};

}  // namespace pybind11::detail
