// Writes a zip archive of stored entries, each aligned to 64 bytes, as torch.save does.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "io/tensor_writer.h"
#include "io/zip_format.h"

namespace mamba3 {

class ZipWriter {
 public:
  // Sizes and offsets from `limit` on are written as 64-bit values; tests lower it.
  explicit ZipWriter(AtomicFile& file, std::uint64_t limit = zip::kIn64)
      : file_(file), limit_(limit) {}

  void add(const std::string& name, std::span<const std::byte> data, WriteProgress& progress);
  void finish();

 private:
  void write(const std::string& bytes);

  AtomicFile& file_;
  std::uint64_t limit_;
  std::uint64_t offset_ = 0;
  std::uint64_t entries_ = 0;
  std::string directory_;
};

}  // namespace mamba3
