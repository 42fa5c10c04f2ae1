#include "io/atomic_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {
namespace {

// Other processes may write beside this one, and a killed one may have left its file.
std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<std::uint64_t> counter{0};
  std::filesystem::path out = path;
  out += "." + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1)) + ".tmp";
  return out;
}

bool is_device_or_pipe(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace

bool is_abandoned_temporary(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const std::string ending = path.stem().extension().string();  // ".PROCESS-COUNTER"
  int process = 0, length = 0;
  unsigned long long counter = 0;
  const bool named = name.ends_with(".tmp") &&
                     std::sscanf(ending.c_str(), ".%d-%llu%n", &process, &counter, &length) == 2 &&
                     length == static_cast<int>(ending.size()) && process > 0;
  return named && (process == ::getpid() || (::kill(process, 0) != 0 && errno == ESRCH));
}

void sync_folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  std::error_code ignored;
  check_input(!std::filesystem::is_directory(path, ignored), "cannot write ", quote(path.string()),
              ": it is a folder; expected a file name; choose another");
  if (is_device_or_pipe(path)) {
    fd_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) refuse(errno);
    return;
  }
  // Through a link, so that the file it points to is replaced and not the link.
  const std::filesystem::path target = std::filesystem::weakly_canonical(path, ignored);
  if (!ignored && !target.empty()) path_ = target;
  do {
    temporary_ = temporary_name(path_);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) {
    const int error = errno;
    temporary_.clear();
    refuse(error);
  }
  struct stat replaced {};
  if (::stat(path_.c_str(), &replaced) == 0) ::fchmod(fd_, replaced.st_mode & 0777);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::refuse(int error) const {
  fail(ErrorCode::kBadInput, "cannot write ", quote(path_.string()), ": ",
       std::generic_category().message(error),
       "; expected an existing folder that can be written, with room for the file; choose another "
       "path or make room");
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  constexpr std::size_t kMostBytes = std::size_t{1} << 30;  // one write() takes less than 2 GiB
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), std::min(bytes.size(), kMostBytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) refuse(errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void AtomicFile::finish() {
  if (fd_ < 0) return;
  // Devices and pipes answer EINVAL: there is nothing to sync.
  if (::fsync(fd_) != 0 && errno != EINVAL && errno != ENOTSUP) refuse(errno);
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0 && errno != EINTR) refuse(errno);
}

void AtomicFile::commit() {
  finish();
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) refuse(errno);
  temporary_.clear();
  sync_folder_of(path_);
}

void write_atomically(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace mamba3
