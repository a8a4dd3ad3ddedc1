# The CUDA engine: the module _cuda, where DEEPLAB_CRF_CUDA wants it and there is a compiler, and, for tests, the same sources compiled
# for the CPU: the module _emulated.
if(NOT DEEPLAB_CRF_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DEEPLAB_CRF_CUDA must be AUTO, ON or OFF; got '${DEEPLAB_CRF_CUDA}'")
endif()

set(DEEPLAB_CRF_CUDA_SOURCES
    csrc/support/cuda/device.cu csrc/support/cuda/device_algorithms.cu csrc/lattice/cuda/build.cu csrc/lattice/cuda/filter.cu
    csrc/lattice/cuda/backward.cu csrc/mean_field/cuda/forward.cu csrc/mean_field/cuda/backward.cu
    csrc/mean_field/cuda/layout.cu csrc/conv/cuda/winograd.cu csrc/conv/cuda/epilogue.cu csrc/conv/cuda/shifted.cu)
set(DEEPLAB_CRF_CUDA_PLAIN_SOURCES csrc/bindings/cuda/module.cpp csrc/bindings/cuda/lattice.cpp csrc/bindings/cuda/mean_field.cpp
                                   csrc/bindings/cuda/conv.cpp csrc/lattice/cuda/structure.cpp)
# They decide on the last bit which vertices exist, as csrc/lattice/cpu/embed.cpp does: no contraction to fused multiply-adds.
set(DEEPLAB_CRF_CUDA_EXACT_SOURCES csrc/lattice/cuda/build.cu csrc/lattice/cuda/backward.cu)

# DEEPLAB_CRF_CUDA_FOUND, and the language.
set(DEEPLAB_CRF_CUDA_FOUND OFF)
if(NOT DEEPLAB_CRF_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # CMake reads the environment variable CUDAARCHS itself.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90)
    endif()
    enable_language(CUDA)
    # The standard is that of C++; CMake 3.25 does not know that nvcc has it.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0)
      set(DEEPLAB_CRF_CUDA_FOUND ON)
    else()
      message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old for the CUDA engine, which needs 12.0")
    endif()
  endif()
  if(DEEPLAB_CRF_CUDA STREQUAL "ON" AND NOT DEEPLAB_CRF_CUDA_FOUND)
    message(FATAL_ERROR "DEEPLAB_CRF_CUDA=ON, but there is no CUDA compiler of version 12.0 or later: install the CUDA toolkit and put "
                        "nvcc on the PATH (or name it in CUDACXX), or build with AUTO or OFF")
  endif()
endif()
if(DEEPLAB_CRF_CUDA_FOUND)
  message(STATUS "CUDA engine: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA engine: not built")
endif()

function(deeplab_crf_add_cuda)
  pybind11_add_module(_cuda MODULE NO_EXTRAS ${DEEPLAB_CRF_CUDA_PLAIN_SOURCES})
  target_link_libraries(_cuda PRIVATE deeplab_crf_options)
  target_compile_definitions(_cuda PRIVATE DEEPLAB_CRF_CUDA_MODULE=_cuda)

  add_library(deeplab_crf_cuda OBJECT ${DEEPLAB_CRF_CUDA_SOURCES})
  target_include_directories(deeplab_crf_cuda PRIVATE csrc)
  list(JOIN CMAKE_CUDA_ARCHITECTURES "," architectures)
  target_compile_definitions(deeplab_crf_cuda PRIVATE DEEPLAB_CRF_CUDA_ARCHITECTURES="${architectures}")
  set_target_properties(deeplab_crf_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
  target_compile_options(deeplab_crf_cuda PRIVATE -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    target_compile_options(deeplab_crf_cuda PRIVATE --compress-mode=size)
  endif()
  set_source_files_properties(${DEEPLAB_CRF_CUDA_EXACT_SOURCES} PROPERTIES COMPILE_OPTIONS -fmad=false)
  # The static runtime, and none of its names seen from outside.
  set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(_cuda PRIVATE deeplab_crf_cuda)
  if(UNIX AND NOT APPLE)
    target_link_options(_cuda PRIVATE LINKER:--exclude-libs,ALL)
  endif()
  install(TARGETS _cuda LIBRARY DESTINATION deeplab_crf)
endfunction()

# Not installed. A source has one language in a CMake project, so each .cu is included by a C++ file of its own.
function(deeplab_crf_add_emulated)
  set(wrappers)
  foreach(source ${DEEPLAB_CRF_CUDA_SOURCES})
    string(REPLACE "/" "_" name ${source})
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
    list(APPEND wrappers ${wrapper})
  endforeach()
  add_library(deeplab_crf_emulated STATIC csrc/support/cuda/emulation.cpp ${wrappers})
  target_link_libraries(deeplab_crf_emulated PUBLIC deeplab_crf_options)
  target_compile_definitions(deeplab_crf_emulated PUBLIC DEEPLAB_CRF_EMULATE_CUDA)
  # Anonymous namespaces of an included source are those of its wrapper.
  target_compile_options(deeplab_crf_emulated PUBLIC -ffp-contract=off -Wno-subobject-linkage)

  pybind11_add_module(_emulated MODULE NO_EXTRAS ${DEEPLAB_CRF_CUDA_PLAIN_SOURCES})
  target_link_libraries(_emulated PRIVATE deeplab_crf_emulated)
  target_compile_definitions(_emulated PRIVATE DEEPLAB_CRF_CUDA_MODULE=_emulated)
  foreach(program emulation_test units_test)
    add_executable(${program} tests/cuda/${program}.cpp)
    target_link_libraries(${program} PRIVATE deeplab_crf_emulated)
  endforeach()
  add_custom_target(emulated DEPENDS _emulated emulation_test units_test)
endfunction()
