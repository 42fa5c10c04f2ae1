#include "io/byte_stream.h"

#include <lzma.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <vector>

#include "core/check.h"

namespace mamba3 {
namespace {

class PlainFile : public ByteStream {
 public:
  explicit PlainFile(const std::filesystem::path& path)
      : path_(path.string()), file_(std::fopen(path.c_str(), "rb")) {
    check_input(file_ != nullptr, path_, " cannot be opened (",
                std::generic_category().message(errno),
                "); expected a readable file; check the path");
  }
  ~PlainFile() override { std::fclose(file_); }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;

  std::size_t read(char* to, std::size_t most) override {
    const std::size_t count = std::fread(to, 1, most, file_);
    check_input(count > 0 || std::ferror(file_) == 0, path_, " cannot be read (",
                std::generic_category().message(errno),
                "); expected a readable file; check the path");
    read_ += static_cast<std::int64_t>(count);
    return count;
  }
  std::int64_t file_bytes_read() const override { return read_; }

 private:
  std::string path_;
  std::FILE* file_;
  std::int64_t read_ = 0;
};

class XzFile : public ByteStream {
 public:
  explicit XzFile(const std::filesystem::path& path)
      : path_(path.string()), file_(path), packed_(kPackedBytes) {
    // What unpacking may take: xz -9 needs 65 MiB.
    constexpr std::uint64_t kMostMemory = std::uint64_t{1} << 30;
    const lzma_ret result = lzma_stream_decoder(&stream_, kMostMemory, LZMA_CONCATENATED);
    if (result != LZMA_OK) refuse(result);
  }
  ~XzFile() override { lzma_end(&stream_); }
  XzFile(const XzFile&) = delete;
  XzFile& operator=(const XzFile&) = delete;

  std::size_t read(char* to, std::size_t most) override {
    stream_.next_out = reinterpret_cast<std::uint8_t*>(to);
    stream_.avail_out = most;
    while (stream_.avail_out == most && !ended_) {
      if (stream_.avail_in == 0) {
        stream_.next_in = reinterpret_cast<const std::uint8_t*>(packed_.data());
        stream_.avail_in = file_.read(packed_.data(), packed_.size());
      }
      const bool last = stream_.avail_in == 0;
      const lzma_ret result = lzma_code(&stream_, last ? LZMA_FINISH : LZMA_RUN);
      if (result == LZMA_STREAM_END) {
        ended_ = true;
      } else if (result != LZMA_OK) {
        refuse(result);
      }
    }
    return most - stream_.avail_out;
  }
  std::int64_t file_bytes_read() const override { return file_.file_bytes_read(); }

 private:
  static constexpr std::size_t kPackedBytes = std::size_t{1} << 16;

  [[noreturn]] void refuse(lzma_ret result) const {
    const char* found = result == LZMA_FORMAT_ERROR     ? "is no .xz archive"
                        : result == LZMA_BUF_ERROR      ? "ends in the middle of its archive"
                        : result == LZMA_MEMLIMIT_ERROR ? "needs more than 1 GiB to be unpacked"
                        : result == LZMA_MEM_ERROR      ? "cannot be unpacked: out of memory"
                                                        : "is a damaged .xz archive";
    fail(ErrorCode::kBadInput, path_, " ", found, "; expected what xz writes; fetch it again");
  }

  std::string path_;
  PlainFile file_;
  std::vector<char> packed_;
  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool ended_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> ByteStream::open(const std::filesystem::path& path) {
  std::error_code error;
  check_input(!std::filesystem::is_directory(path, error), path.string(),
              " is a folder; expected a file");
  if (path.extension() == ".xz") return std::make_unique<XzFile>(path);
  return std::make_unique<PlainFile>(path);
}

}  // namespace mamba3
