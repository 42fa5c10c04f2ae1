// A file mapped read-only. Tensors of a checkpoint point straight into it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

namespace mamba3 {

class MappedFile {
 public:
  // Refuses what is missing, unreadable or not a regular file, with the path and the reason.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  // The same from memory, for tests and fuzzers; `path` only names it in messages.
  static std::shared_ptr<const MappedFile> from_bytes(std::vector<std::byte> bytes,
                                                      const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  std::vector<std::byte> owned_;  // of from_bytes
};

// False only when nothing is there; what cannot be looked at is left for open() to refuse with the
// reason.
bool is_there(const std::filesystem::path& path);

}  // namespace mamba3
