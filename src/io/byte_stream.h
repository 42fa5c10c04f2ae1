// A file read from its beginning to its end, unpacked on the way when its name ends in .xz.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace mamba3 {

class ByteStream {
 public:
  // Refuses what cannot be opened, with the path and the reason.
  static std::unique_ptr<ByteStream> open(const std::filesystem::path& path);
  virtual ~ByteStream() = default;

  // Up to `most` bytes; 0 only at the end. A damaged or truncated archive is refused.
  virtual std::size_t read(char* to, std::size_t most) = 0;
  // Of the file itself, packed or not: how far reading has come.
  virtual std::int64_t file_bytes_read() const = 0;
};

}  // namespace mamba3
