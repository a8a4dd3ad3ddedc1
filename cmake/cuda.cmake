# DEEPLAB_CRF_CUDA -> DEEPLAB_CRF_CUDA_FOUND: looks for a CUDA compiler where one is wanted. The CUDA engine has no sources yet;
# the option exists so that build commands need not change when it comes.
set(DEEPLAB_CRF_CUDA_FOUND OFF)
if(NOT DEEPLAB_CRF_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DEEPLAB_CRF_CUDA must be AUTO, ON or OFF; got '${DEEPLAB_CRF_CUDA}'")
endif()
if(DEEPLAB_CRF_CUDA STREQUAL "ON")
  message(FATAL_ERROR "DEEPLAB_CRF_CUDA=ON, but this version has no CUDA kernels yet: build with AUTO or OFF")
endif()
