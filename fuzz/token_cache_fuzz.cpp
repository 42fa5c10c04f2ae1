// Caches of tokens; also with the checksum put right, which no mutation hits.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "core/check.h"
#include "core/hash.h"
#include "train/window_reader.h"

namespace {

using mamba3::TokenCache;

constexpr std::size_t kFooterBytes = 56;

void read_all(const std::shared_ptr<const TokenCache>& cache) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(cache->tokens()));
  cache->copy(0, ids);
  for (std::int64_t i = 0; i <= cache->documents(); ++i) cache->document_begin(i);
  const mamba3::HeldOutSplit split = mamba3::hold_out(cache, 0.3);
  const mamba3::WindowReader windows(split.training, 3, "input");
  for (std::int64_t i = 0; i < windows.windows(); ++i) {
    const std::vector<std::int64_t> one{i};
    if (windows.read(one).ids.size() != 3) std::abort();
  }
}

void open(const std::vector<std::byte>& bytes) {
  std::uint64_t fingerprint = 0;
  if (bytes.size() >= kFooterBytes) {
    std::memcpy(&fingerprint, bytes.data() + bytes.size() - kFooterBytes, sizeof(fingerprint));
  }
  try {
    read_all(TokenCache::open(mamba3::MappedFile::from_bytes(bytes, "input"), fingerprint));
  } catch (const mamba3::Error& error) {
    if (error.code() != mamba3::ErrorCode::kBadInput) std::abort();
  }
}

// As the writer computes it of contents below a block of its hash.
void put_checksum(std::vector<std::byte>& bytes) {
  const std::size_t contents = bytes.size() - kFooterBytes;
  mamba3::Hash64 all;
  all.update(std::span<const std::byte>(bytes).first(contents));
  mamba3::Hash64 checksum;
  checksum.update(all.value());
  for (std::size_t i = 0; i < 5; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + contents + 8 * i, sizeof(word));
    checksum.update(word);
  }
  const std::uint64_t value = checksum.value();
  std::memcpy(bytes.data() + contents + 40, &value, sizeof(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* first = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(first, first + size);
  open(bytes);
  if (size < kFooterBytes) return 0;
  put_checksum(bytes);
  open(bytes);
  return 0;
}
