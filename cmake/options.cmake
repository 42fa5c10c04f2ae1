# Compiler settings of every target in this project, as one interface target.
add_library(mamba3_options INTERFACE)
target_compile_features(mamba3_options INTERFACE cxx_std_20)
configure_file(cmake/version.h.in ${PROJECT_BINARY_DIR}/include/mamba3/version.h @ONLY)
target_include_directories(mamba3_options INTERFACE
  ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include ${PROJECT_SOURCE_DIR}/src)
# Of C++ only: nvcc has other options (cmake/cuda.cmake).
function(mamba3_cxx_options)
  foreach(option ${ARGN})
    target_compile_options(mamba3_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${option}>)
  endforeach()
endfunction()
# -ffp-contract=off: one rounding per operation, as written. A compiler's choice to fuse would change bits between builds.
mamba3_cxx_options(-Wall -Wextra -Wshadow -Wno-psabi -ffp-contract=off)
# Highway compiles each kernel once for every target. Processors between plain x86-64 and AVX2 (older than 2013) take
# the portable one: two targets less to build and to test.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # Kernels keep vectors in arrays, which types of unknown size cannot do: NEON, no SVE.
  target_compile_definitions(mamba3_options INTERFACE
    "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
else()
  set(mamba3_disabled_targets HWY_SSSE3|HWY_SSE4)
  if(MAMBA3_SANITIZE)  # the portable one and AVX2 do: a better target has a lower bit
    string(APPEND mamba3_disabled_targets "|(HWY_AVX2-1)")
  endif()
  # The portable one takes numbers one by one with every compiler; clang would emulate vectors by loops, which triples the
  # time to compile them.
  target_compile_definitions(mamba3_options INTERFACE "HWY_DISABLED_TARGETS=(${mamba3_disabled_targets})" HWY_BROKEN_EMU128=1)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc 12 reports std::string's operator+ as an overlapping copy (its bug 105651).
  mamba3_cxx_options(-Wno-restrict)
endif()
if(MAMBA3_WERROR)
  mamba3_cxx_options(-Werror)
endif()
# Where nothing is hot, time to compile counts more than time to run.
set(mamba3_cold_options $<$<CONFIG:Release>:-O1>)
if(MAMBA3_SANITIZE)
  target_compile_options(mamba3_options INTERFACE -fsanitize=${MAMBA3_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(mamba3_options INTERFACE -fsanitize=${MAMBA3_SANITIZE})
  set(mamba3_cold_options -O0)  # sanitizers double what there is to optimise
  # clang counts this as undefined behaviour, gcc does not; Highway's emulated conversions of a NaN would trip over it.
  target_compile_options(mamba3_options INTERFACE $<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=float-cast-overflow>)
endif()
