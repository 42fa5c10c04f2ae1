// Texts to train on: cut at separators, JSON lines, and either of them packed by xz.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "core/check.h"
#include "io/document_reader.h"

namespace {

using mamba3::ByteStream;

// A few bytes at a time, so that lines are put together from pieces.
class Pieces : public ByteStream {
 public:
  explicit Pieces(std::string_view bytes) : bytes_(bytes) {}
  std::size_t read(char* to, std::size_t most) override {
    const std::size_t count = std::min({most, bytes_.size() - at_, std::size_t{7}});
    std::memcpy(to, bytes_.data() + at_, count);
    at_ += count;
    return count;
  }
  std::int64_t file_bytes_read() const override { return static_cast<std::int64_t>(at_); }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

void read_all(std::unique_ptr<ByteStream> stream, const char* name, const char* separator) {
  constexpr int kMostDocuments = 10'000;  // of a small archive there may be very many
  try {
    mamba3::DocumentReader reader(std::move(stream), name, {separator, "text"});
    std::string document;
    for (int i = 0; i < kMostDocuments && reader.next(document); ++i) {
      if (document.empty()) std::abort();
    }
  } catch (const mamba3::Error& error) {
    if (error.code() != mamba3::ErrorCode::kBadInput) std::abort();
  }
}

std::unique_ptr<ByteStream> unpacked(std::string_view bytes) {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / mamba3::str("mamba3-fuzz-", ::getpid(), ".xz");
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  auto stream = ByteStream::open(path);
  std::filesystem::remove(path);
  return stream;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.starts_with("\xfd"
                       "7zXZ")) {
    read_all(unpacked(text), "packed.jsonl", "");
    return 0;
  }
  read_all(std::make_unique<Pieces>(text), "lines.jsonl", "");
  read_all(std::make_unique<Pieces>(text), "text", "--");
  read_all(std::make_unique<Pieces>(text), "text", "");
  return 0;
}
