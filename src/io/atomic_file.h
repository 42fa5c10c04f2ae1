// Writing a file so that a reader sees the old one or the new one, never a half one.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace mamba3 {

// Bytes go to a temporary file in the same folder; commit() syncs and renames it. Without commit()
// nothing stays. A path that is a device or a pipe (/dev/stdout) is written directly.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Syncs and closes, and leaves the rename to commit(): several files can so be made ready first
  // and appear together.
  void finish();
  void commit();

 private:
  [[noreturn]] void refuse(int error) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty: written directly, or already renamed
  int fd_ = -1;
};

// A whole file, by an AtomicFile.
void write_atomically(const std::filesystem::path& path, std::string_view text);

// Whether `path` is named as an AtomicFile's temporary file whose process has ended without
// removing it, or is this one, which then must have none in that folder.
bool is_abandoned_temporary(const std::filesystem::path& path);

// Makes what was done to the name `path` in its folder durable, as a rename. Some file systems
// cannot sync a folder: nothing is lost then.
void sync_folder_of(const std::filesystem::path& path);

}  // namespace mamba3
