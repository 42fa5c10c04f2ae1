# Writes OUTPUT, a header with the commit that SOURCE is at, when that has changed. Run at each build, so that a result
# file tells what was measured.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND git describe --always --dirty --abbrev=9 WORKING_DIRECTORY ${SOURCE}
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR NOT commit MATCHES "^[A-Za-z0-9._-]+$")
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "// Written by cmake/commit.cmake.
#pragma once

namespace mamba3::cli {

inline constexpr const char* kBuildCommit = \"@commit@\";

}  // namespace mamba3::cli
" @ONLY)
