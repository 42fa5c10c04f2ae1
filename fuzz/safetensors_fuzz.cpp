#include "core/check.h"
#include "fuzz_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    mamba3::touch(mamba3::parse_safetensors(mamba3::file_of(data, size)));
  } catch (const mamba3::Error&) {
  }
  return 0;
}
