// Where a result comes from.
#pragma once

#include <string>

namespace mamba3::cli {

// This process's, without what does not change a result: "mamba3 bench decode --batch 1,8".
std::string command_line();

// What the program was built from, as `git describe --always --dirty` says; "unknown" when it was
// not built in a repository.
std::string build_commit();

// Of Greenwich: "2026-11-25".
std::string today();

// The version of the NVIDIA driver: "580.159.04". Empty when the system does not say.
std::string gpu_driver();
// The same from the text of /proc/driver/nvidia/version.
std::string driver_in(const std::string& text);

}  // namespace mamba3::cli
