# cmake --install: the program, the library with its headers and CMake package, the bundled model.
include(CMakePackageConfigHelpers)

install(TARGETS mamba3 EXPORT mamba3-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET mamba3_cli)
  install(TARGETS mamba3_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/mamba3 ${PROJECT_BINARY_DIR}/include/mamba3
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(DIRECTORY models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/mamba3/models)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mamba3)
install(EXPORT mamba3-targets NAMESPACE mamba3:: DESTINATION ${package_dir})
configure_package_config_file(cmake/mamba3-config.cmake.in ${PROJECT_BINARY_DIR}/mamba3-config.cmake
  INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_DATADIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mamba3-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mamba3-config.cmake ${PROJECT_BINARY_DIR}/mamba3-config-version.cmake
  cmake/onednn.cmake DESTINATION ${package_dir})
