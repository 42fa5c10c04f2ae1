#include "train/token_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "core/check.h"
#include "core/hash.h"
#include "io/atomic_file.h"

namespace mamba3 {
namespace {

constexpr char kMagic[8] = {'M', '3', 'T', 'O', 'K', 'E', 'N', '1'};
constexpr std::size_t kBatchBytes = std::size_t{8} << 20;  // of documents that wait to be encoded

// Behind the ids and the begins of documents: both are known only at the end. Little-endian.
struct Footer {
  std::uint64_t fingerprint = 0;
  std::uint64_t tokens = 0;
  std::uint64_t documents = 0;
  std::uint64_t vocab = 0;
  std::uint64_t id_bytes = 0;
  std::uint64_t checksum = 0;  // of everything before the footer, and of the numbers above
  char magic[8] = {};
};
static_assert(sizeof(Footer) == 56);

// A checksum that does not depend on the pieces in which bytes come.
class StreamHash {
 public:
  void update(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t count = std::min(bytes.size(), kBlockBytes - block_.size());
      block_.insert(block_.end(), bytes.begin(),
                    bytes.begin() + static_cast<std::ptrdiff_t>(count));
      bytes = bytes.subspan(count);
      if (block_.size() == kBlockBytes) flush();
    }
  }
  std::uint64_t value() {
    flush();
    return hash_.value();
  }

 private:
  static constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  void flush() {
    hash_.update(std::span<const std::byte>(block_));
    block_.clear();
  }
  std::vector<std::byte> block_;
  Hash64 hash_;
};

std::uint64_t checksum_of(std::uint64_t contents, const Footer& footer) {
  Hash64 hash;
  for (const std::uint64_t word : {contents, footer.fingerprint, footer.tokens, footer.documents,
                                   footer.vocab, footer.id_bytes}) {
    hash.update(word);
  }
  return hash.value();
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// Encodes batches of documents and appends them to the file.
class Builder {
 public:
  Builder(const Tokenizer& tokenizer, const std::filesystem::path& path, ThreadPool& pool)
      : tokenizer_(tokenizer),
        file_(path),
        pool_(pool),
        narrow_(tokenizer.vocab() <= std::int64_t{std::numeric_limits<std::uint16_t>::max()} + 1) {}

  void add(std::string document, const std::string& where) {
    waiting_bytes_ += document.size() + where.size() + sizeof(Waiting);  // many may be tiny
    waiting_.push_back({std::move(document), where});
    if (waiting_bytes_ >= kBatchBytes) encode_waiting();
  }

  void finish(std::uint64_t fingerprint) {
    encode_waiting();
    begins_.push_back(tokens_);
    pad();
    append(bytes_of(begins_));
    Footer footer;
    footer.fingerprint = fingerprint;
    footer.tokens = tokens_;
    footer.documents = begins_.size() - 1;
    footer.vocab = static_cast<std::uint64_t>(tokenizer_.vocab());
    footer.id_bytes = narrow_ ? 2 : 4;
    footer.checksum = checksum_of(contents_.value(), footer);
    std::memcpy(footer.magic, kMagic, sizeof(kMagic));
    file_.write(std::as_bytes(std::span(&footer, 1)));
    file_.commit();
  }

 private:
  struct Waiting {
    std::string text, where;
    std::vector<std::int32_t> ids = {};
    std::optional<Error> error = std::nullopt;
  };

  void encode_waiting() {
    pool_.run(std::ssize(waiting_), [&](std::int64_t i, int) {
      Waiting& one = waiting_[static_cast<std::size_t>(i)];
      try {
        one.ids = tokenizer_.encode(one.text, true);
      } catch (const Error& error) {
        one.error = error;
      }
    });
    for (const Waiting& one : waiting_) {
      if (one.error) fail(one.error->code(), one.where, ": ", one.error->what());
      begins_.push_back(tokens_);
      tokens_ += one.ids.size();
      append_ids(one.ids);
    }
    waiting_.clear();
    waiting_bytes_ = 0;
  }

  void append_ids(const std::vector<std::int32_t>& ids) {
    if (!narrow_) return append(bytes_of(ids));
    append(bytes_of(std::vector<std::uint16_t>(ids.begin(), ids.end())));
  }
  // The begins lie on eight bytes.
  void pad() {
    const std::size_t used = tokens_ * (narrow_ ? 2 : 4) % 8;
    if (used > 0) append(bytes_of(std::vector<std::byte>(8 - used)));
  }
  void append(std::span<const std::byte> bytes) {
    contents_.update(bytes);
    file_.write(bytes);
  }

  const Tokenizer& tokenizer_;
  AtomicFile file_;
  ThreadPool& pool_;
  bool narrow_;
  std::vector<Waiting> waiting_;
  std::size_t waiting_bytes_ = 0;
  std::vector<std::uint64_t> begins_;
  std::uint64_t tokens_ = 0;
  StreamHash contents_;
};

std::int64_t file_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return error ? 0 : static_cast<std::int64_t>(size);
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& found) {
  fail(ErrorCode::kBadInput, path.string(), " ", found,
       "; expected a cache of tokens; remove it, and it is built again");
}

}  // namespace

std::uint64_t sources_fingerprint(const TokenSources& sources,
                                  const std::filesystem::path& tokenizer) {
  Hash64 hash;
  for (const std::string& word : {sources.format.separator, sources.format.json_key}) {
    hash.update(std::as_bytes(std::span(word)));
  }
  hash.update(MappedFile::open(tokenizer)->bytes());
  for (const auto& file : sources.files) {
    const auto mapped = MappedFile::open(file);
    hash.update(mapped->bytes());
    // The same bytes are other documents by another name.
    if (holds_json_lines(file)) hash.update(std::uint64_t{1});
  }
  return hash.value();
}

void TokenCache::build(const TokenSources& sources, const Tokenizer& tokenizer,
                       std::uint64_t fingerprint, const std::filesystem::path& path,
                       ThreadPool& pool, const Progress& progress) {
  std::int64_t all = 0, done = 0;
  for (const auto& file : sources.files) all += file_bytes(file);
  Builder builder(tokenizer, path, pool);
  for (const auto& file : sources.files) {
    DocumentReader reader(file, sources.format);
    std::string document;
    for (std::int64_t number = 1; reader.next(document); ++number) {
      builder.add(std::move(document), str(file.string(), ", document ", number));
      if (progress) progress(done + reader.file_bytes_read(), all);
    }
    done += file_bytes(file);
  }
  builder.finish(fingerprint);
}

std::shared_ptr<const TokenCache> TokenCache::open(const std::filesystem::path& path,
                                                   std::uint64_t fingerprint) {
  return open(MappedFile::open(path), fingerprint);
}

std::shared_ptr<const TokenCache> TokenCache::open(const std::shared_ptr<const MappedFile>& file,
                                                   std::uint64_t fingerprint) {
  const std::filesystem::path& path = file->path();
  const std::span<const std::byte> bytes = file->bytes();
  Footer footer;
  if (bytes.size() < sizeof(footer)) refuse(path, "is too short");
  const std::size_t contents = bytes.size() - sizeof(footer);
  std::memcpy(&footer, bytes.data() + contents, sizeof(footer));
  if (std::memcmp(footer.magic, kMagic, sizeof(kMagic)) != 0) refuse(path, "is not complete");
  const std::uint64_t most = contents / 2;
  const bool fits =
      (footer.id_bytes == 2 || footer.id_bytes == 4) && footer.tokens <= most &&
      footer.documents <= most &&
      (footer.tokens * footer.id_bytes + 7) / 8 * 8 + (footer.documents + 1) * 8 == contents;
  if (!fits) refuse(path, "has sizes that do not fit together");
  StreamHash hash;
  hash.update(bytes.first(contents));
  if (checksum_of(hash.value(), footer) != footer.checksum) refuse(path, "is damaged");
  std::shared_ptr<TokenCache> cache(new TokenCache);
  cache->file_ = file;
  cache->ids_ = bytes.data();
  cache->begins_ = bytes.data() + (footer.tokens * footer.id_bytes + 7) / 8 * 8;
  cache->tokens_ = static_cast<std::int64_t>(footer.tokens);
  cache->documents_ = static_cast<std::int64_t>(footer.documents);
  cache->vocab_ = static_cast<std::int64_t>(footer.vocab);
  cache->id_bytes_ = static_cast<int>(footer.id_bytes);
  if (footer.fingerprint != fingerprint)
    refuse(path, "was made from other texts or another tokenizer");
  if (!cache->documents_in_order()) refuse(path, "has documents that do not follow each other");
  return cache;
}

bool TokenCache::documents_in_order() const {
  std::int64_t end = 0;
  for (std::int64_t i = 0; i <= documents_; ++i) {
    const std::int64_t begin = document_begin(i);
    if (begin < end || (i == 0 && begin != 0)) return false;
    end = begin;
  }
  return end == tokens_;
}

void TokenCache::copy(std::int64_t begin, std::span<std::int32_t> ids) const {
  check_input(begin >= 0 && begin + std::ssize(ids) <= tokens_, "tokens ", begin, " to ",
              begin + std::ssize(ids), " of a cache of ", tokens_, "; expected tokens in it");
  const std::byte* from = ids_ + begin * id_bytes_;
  for (std::size_t i = 0; i < ids.size(); ++i, from += id_bytes_) {
    std::uint32_t id = 0;
    std::memcpy(&id, from, static_cast<std::size_t>(id_bytes_));  // little-endian
    ids[i] = static_cast<std::int32_t>(id);
  }
}

std::int64_t TokenCache::document_begin(std::int64_t document) const {
  check_input(document >= 0 && document <= documents_, "document ", document, " of ", documents_,
              "; expected one of them");
  std::uint64_t begin = 0;
  std::memcpy(&begin, begins_ + document * 8, sizeof(begin));
  return static_cast<std::int64_t>(begin);
}

std::int64_t TokenCache::first_document(std::int64_t token) const {
  std::int64_t first = 0, end = documents_;
  while (first < end) {
    const std::int64_t middle = first + (end - first) / 2;
    if (document_begin(middle) < token) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first;
}

}  // namespace mamba3
