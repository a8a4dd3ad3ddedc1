// Arrays cross the boundary as addresses: the Python side allocates them, checks shapes and dtypes, and keeps them alive.
#pragma once

#include <cstdint>

namespace deeplab_crf::bindings {

// An address from Python (numpy's array.ctypes.data, torch's tensor.data_ptr()) as a pointer; 0 is null.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): this is the boundary
}

}  // namespace deeplab_crf::bindings
