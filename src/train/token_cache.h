// Tokens of a corpus on disk, encoded once and mapped: what training reads its windows from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "io/document_reader.h"
#include "io/mapped_file.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

struct TokenSources {
  std::vector<std::filesystem::path> files;  // read in this order
  DocumentFormat format;
};

// Of the sources' contents, their order and format, and of the tokenizer's file: what a cache must
// have been made from. Reads every file once.
std::uint64_t sources_fingerprint(const TokenSources& sources,
                                  const std::filesystem::path& tokenizer);

class TokenCache {
 public:
  using Progress = std::function<void(std::int64_t bytes_done, std::int64_t bytes_all)>;

  // Encodes every document with the tokenizer's own special tokens (its BOS), on all threads, and
  // writes the file; what is written does not depend on the number of threads. An interrupted build
  // leaves nothing.
  static void build(const TokenSources& sources, const Tokenizer& tokenizer,
                    std::uint64_t fingerprint, const std::filesystem::path& path, ThreadPool& pool,
                    const Progress& progress = {});
  // Refuses what is no cache, is damaged or was made from something else, with the reason.
  static std::shared_ptr<const TokenCache> open(const std::filesystem::path& path,
                                                std::uint64_t fingerprint);
  static std::shared_ptr<const TokenCache> open(const std::shared_ptr<const MappedFile>& file,
                                                std::uint64_t fingerprint);

  std::int64_t tokens() const { return tokens_; }
  std::int64_t documents() const { return documents_; }
  std::int64_t vocab() const { return vocab_; }  // largest id + 1 of the tokenizer
  // Tokens [begin, begin + ids.size()).
  void copy(std::int64_t begin, std::span<std::int32_t> ids) const;
  // The first token of each document, and at the end tokens().
  std::int64_t document_begin(std::int64_t document) const;
  // The first document that begins at a token or later; documents() where none does.
  std::int64_t first_document(std::int64_t token) const;

 private:
  TokenCache() = default;
  bool documents_in_order() const;

  std::shared_ptr<const MappedFile> file_;
  const std::byte* ids_ = nullptr;     // u16 or u32
  const std::byte* begins_ = nullptr;  // u64 [documents + 1]
  std::int64_t tokens_ = 0, documents_ = 0, vocab_ = 0;
  int id_bytes_ = 0;
};

}  // namespace mamba3
