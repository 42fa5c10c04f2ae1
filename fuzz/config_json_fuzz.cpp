#include <cstdlib>
#include <string>

#include "core/check.h"
#include "io/config_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const mamba3::ModelConfig config = mamba3::parse_config(text, "input");
    // What was accepted has sizes that can be computed, and is written as it was read.
    const std::string written = mamba3::config_to_json(config);
    const mamba3::ModelConfig again = mamba3::parse_config(written, "written");
    if (mamba3::config_to_json(again) != written || again.state_bytes() != config.state_bytes() ||
        again.parameters() <= 0) {
      std::abort();
    }
  } catch (const mamba3::Error&) {
  }
  return 0;
}
