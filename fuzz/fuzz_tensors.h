// What the fuzz targets of checkpoint files share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "io/mapped_file.h"
#include "io/tensor_file.h"

namespace mamba3 {

inline std::shared_ptr<const MappedFile> file_of(const std::uint8_t* data, std::size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  return MappedFile::from_bytes(std::vector<std::byte>(bytes, bytes + size), "input");
}

// Reads every byte of every tensor, so that the sanitizer sees one that leaves its file.
inline void touch(const TensorFile& file) {
  unsigned sum = 0;
  for (const auto& [name, tensor] : file.tensors) {
    for (std::int64_t i = 0; i < tensor.bytes(); ++i) sum += static_cast<unsigned>(tensor.data[i]);
  }
  volatile unsigned used = sum;
  static_cast<void>(used);
}

}  // namespace mamba3
