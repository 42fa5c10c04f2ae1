// The JSON header of a safetensors file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "mamba3/tensor.h"

namespace mamba3 {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  // bytes, from the start of the data
  std::int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the header's order, names all different
  std::map<std::string, std::string> metadata;
};

// Checks the form and each value alone; offsets against each other and the file are the caller's.
SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& origin);

}  // namespace mamba3
