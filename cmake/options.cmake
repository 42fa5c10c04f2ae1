# Compiler settings of every target in this project, as one interface target.
add_library(mamba3_options INTERFACE)
target_compile_features(mamba3_options INTERFACE cxx_std_20)
configure_file(cmake/version.h.in ${PROJECT_BINARY_DIR}/include/mamba3/version.h @ONLY)
target_include_directories(mamba3_options INTERFACE
  ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include ${PROJECT_SOURCE_DIR}/src)
target_compile_options(mamba3_options INTERFACE -Wall -Wextra -Wshadow -Wno-psabi
  # One rounding per operation, as written: a compiler's choice to fuse would change bits between builds.
  -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc 12 reports std::string's operator+ as an overlapping copy (its bug 105651).
  target_compile_options(mamba3_options INTERFACE -Wno-restrict)
endif()
if(MAMBA3_WERROR)
  target_compile_options(mamba3_options INTERFACE -Werror)
endif()
if(MAMBA3_SANITIZE)
  target_compile_options(mamba3_options INTERFACE -fsanitize=${MAMBA3_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(mamba3_options INTERFACE -fsanitize=${MAMBA3_SANITIZE})
endif()
