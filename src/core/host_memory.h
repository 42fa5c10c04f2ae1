// How much more memory this process may use.
#pragma once

#include <cstdint>
#include <filesystem>

namespace mamba3 {

// The least of what the system has to give without swapping, what each control group around this
// process has left, and what its own limits leave. A system that says nothing: the largest number.
// `root` stands for / in tests.
std::int64_t available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace mamba3
