// Options in YAML or JSON, as train --run takes them.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/check.h"
#include "io/run_file.h"

namespace {

// The writer replaces what is no UTF-8, and code points that are no characters.
bool ascii(const mamba3::RunFileEntry& entry) {
  const auto is = [](std::string_view text) {
    return std::ranges::all_of(text, [](char c) { return c >= 0; });
  };
  return is(entry.key) && std::ranges::all_of(entry.values, is);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto entries = mamba3::parse_run_file(text, "input");
    const auto again = mamba3::parse_run_file(mamba3::run_file_text(entries, {}), "written");
    if (std::ranges::all_of(entries, ascii) && entries != again) std::abort();
  } catch (const mamba3::Error& error) {
    if (error.code() != mamba3::ErrorCode::kBadInput) std::abort();
  }
  return 0;
}
