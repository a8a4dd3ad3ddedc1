#include "support/cuda/device.h"
#include "support/cuda/launch.h"

namespace deeplab_crf::cuda {

#ifdef DEEPLAB_CRF_EMULATE_CUDA

std::string built_architectures() { return "emulated"; }

std::string built_by() { return "gcc " __VERSION__; }

int device_count(std::string* why) {
  why->clear();
  return 1;
}

#else

std::string built_architectures() { return DEEPLAB_CRF_CUDA_ARCHITECTURES; }

std::string built_by() {
  return "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
         std::to_string(__CUDACC_VER_BUILD__);
}

int device_count(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  why->clear();
  if (error == cudaSuccess) return count;
  *why = cudaGetErrorString(error);
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

void check(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  std::string text = std::string(name) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    text += ". deeplab_crf was built for the architectures " + built_architectures() +
            ", which this device or its driver does not run: install from source with CUDAARCHS set to the device's, for example "
            "CUDAARCHS=90, or use the CPU";
  } else if (!synchronises()) {
    text += ". Errors of kernels show up late: DEEPLAB_CRF_CUDA_SYNC=1 waits for each and names the one that failed";
  }
  throw CudaError(text);
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

#endif

}  // namespace deeplab_crf::cuda
