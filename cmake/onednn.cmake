# oneDNN, found by its files: its own CMake package, as Debian builds it, also demands OpenCL's development files, which
# nothing here uses. Read by this project and by the installed package.
if(NOT TARGET DNNL::dnnl)
  find_path(mamba3_dnnl_include oneapi/dnnl/dnnl.hpp REQUIRED)
  find_library(mamba3_dnnl_library dnnl REQUIRED)
  mark_as_advanced(mamba3_dnnl_include mamba3_dnnl_library)
  add_library(DNNL::dnnl UNKNOWN IMPORTED)
  set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION "${mamba3_dnnl_library}"
    INTERFACE_INCLUDE_DIRECTORIES "${mamba3_dnnl_include}")
endif()
