#include "io/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {
namespace {

// What the holder wrote; it may just be about to.
std::string holder_of(const std::filesystem::path& path) {
  long process = 0;
  if (!(std::ifstream(path) >> process)) return "another process";
  return str("process ", process);
}

}  // namespace

FolderLock::FolderLock(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  check_input(fd_ >= 0, "cannot open ", quote(path.string()), ": ",
              std::generic_category().message(errno),
              "; expected a folder that can be written; choose another one");
  int result = 0;
  do result = ::flock(fd_, LOCK_EX | LOCK_NB);
  while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EWOULDBLOCK) {
    ::close(fd_);
    fail(ErrorCode::kBadInput, quote(folder.string()), " is being written by ", holder_of(path),
         "; expected one writer at a time; wait until it has ended, or choose another folder");
  }
  const std::string process = str(::getpid(), "\n");
  // Only a message to others: without it the lock holds as well.
  if (::ftruncate(fd_, 0) != 0 || ::write(fd_, process.data(), process.size()) < 0) errno = 0;
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

FolderLock::FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

}  // namespace mamba3
