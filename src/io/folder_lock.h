// One writer for a folder: who comes second is refused with the process that was first.
#pragma once

#include <filesystem>

namespace mamba3 {

// Holds FOLDER/lock, which says the process's number, until it is destroyed or the process ends,
// however it ends: the file stays, its lock does not. The folder must be there. Where the file
// system knows no locks nothing is locked.
class FolderLock {
 public:
  // Refuses (kBadInput) a folder that another process has locked.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(FolderLock&& other) noexcept;
  FolderLock& operator=(FolderLock&&) = delete;

 private:
  int fd_;
};

}  // namespace mamba3
