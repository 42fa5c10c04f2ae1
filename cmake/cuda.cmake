# The GPU backend: nvcc for kernels, cuBLASLt for matrix products. Code for Hopper (90a) and for everything from 8.0 on.
set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90a-real CACHE STRING "GPU architectures")
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
# CMake 3.25 does not know that the newest nvcc takes C++20.
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
set(CMAKE_CUDA_STANDARD 20)

# compute-sanitizer's racecheck loses sight of a warp that arrives at a barrier by one lane (device/bulk_copy.cuh).
option(MAMBA3_RACECHECK "kernels whose barriers racecheck can follow; slower" OFF)
if(MAMBA3_RACECHECK)
  add_compile_definitions($<$<COMPILE_LANGUAGE:CUDA>:MAMBA3_RACECHECK>)
endif()

# Takes the name of a layer: adds its .cu files to it, and the libraries that they and its *_cuda.cpp files use.
function(mamba3_cuda_layer name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cu)
  target_sources(mamba3_${name} PRIVATE ${sources})
  target_link_libraries(mamba3_${name} PUBLIC CUDA::cudart_static CUDA::cublasLt)
endfunction()
