#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {
namespace {

// Closes a descriptor at the end of its scope; a mapping outlives it.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

[[noreturn]] void refuse(const std::filesystem::path& path, int error) {
  fail(ErrorCode::kBadInput, "cannot open ", quote(path.string()), ": ",
       std::generic_category().message(error),
       "; expected a readable file; check the path and its permissions");
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) refuse(path, errno);
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) refuse(path, errno);
  check_input(!S_ISDIR(status.st_mode), quote(path.string()),
              " is a folder; expected a file; name a file inside it");
  check_input(S_ISREG(status.st_mode), quote(path.string()),
              " is not a regular file; expected one that can be mapped; copy it to a file first");

  std::shared_ptr<MappedFile> out(new MappedFile());
  out->path_ = path;
  out->size_ = static_cast<std::size_t>(status.st_size);
  if (out->size_ == 0) return out;  // mmap takes no empty range
  void* data = ::mmap(nullptr, out->size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) refuse(path, errno);
  out->data_ = static_cast<const std::byte*>(data);
  out->mapped_ = true;
  // Starts reading a cold file in large pieces; advice only, so its result does not matter.
  ::madvise(data, out->size_, MADV_WILLNEED);
  return out;
}

std::shared_ptr<const MappedFile> MappedFile::from_bytes(std::vector<std::byte> bytes,
                                                         const std::filesystem::path& path) {
  std::shared_ptr<MappedFile> out(new MappedFile());
  out->path_ = path;
  out->owned_ = std::move(bytes);
  out->data_ = out->owned_.data();
  out->size_ = out->owned_.size();
  return out;
}

MappedFile::~MappedFile() {
  if (mapped_) ::munmap(const_cast<std::byte*>(data_), size_);
}

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::status(path, ignored).type() != std::filesystem::file_type::not_found;
}

}  // namespace mamba3
