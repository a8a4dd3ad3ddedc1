// Devices and their errors, for code that sees no CUDA header.
#pragma once

#include <stdexcept>
#include <string>

namespace deeplab_crf::cuda {

// Where work is put: the device's number, and a stream of it (a cudaStream_t; null is the default stream).
struct Queue {
  int device;
  void* stream;
};

// A call of the CUDA runtime or a kernel failed. The message names it, says what CUDA said, and the cure where there is one.
class CudaError : public std::runtime_error {
 public:
  explicit CudaError(const std::string& message) : std::runtime_error(message) {}
};

// What this build has: the architectures it was compiled for ("emulated" if kernels run on the CPU) and the compiler.
std::string built_architectures();
std::string built_by();

// Number of devices that the driver offers. 0 if there are none or no driver; `why` then is what CUDA says.
int device_count(std::string* why);

}  // namespace deeplab_crf::cuda
