#include "train/token_cache.h"

#include <numeric>

#include "../io/file_test_util.h"

namespace mamba3 {
namespace {

const std::filesystem::path kTokenizer =
    std::filesystem::path(MAMBA3_REPOSITORY) / "models/siso-10m/tokenizer.json";

class TokenCacheTest : public ::testing::Test {
 protected:
  TokenCacheTest() {
    std::string text;
    for (int i = 0; i < 300; ++i) {
      texts_.push_back("Document " + std::to_string(i * i) + " says the same as others.");
      text += texts_.back() + "\n<|endoftext|>\n";
    }
    write_text(folder_ / "a.txt", text);
    write_text(folder_ / "b.jsonl", "{\"text\": \"The last one.\"}\n");
    texts_.push_back("The last one.");
    sources_.files = {folder_ / "a.txt", folder_ / "b.jsonl"};
    fingerprint_ = sources_fingerprint(sources_, kTokenizer);
  }

  std::shared_ptr<const TokenCache> build(int threads = 2) {
    ThreadPool pool(threads);
    TokenCache::build(sources_, *tokenizer_, fingerprint_, path(), pool);
    return TokenCache::open(path(), fingerprint_);
  }
  std::filesystem::path path() const { return folder_ / "cache"; }

  TempFolder folder_;
  std::vector<std::string> texts_;
  TokenSources sources_;
  std::uint64_t fingerprint_ = 0;
  std::shared_ptr<const Tokenizer> tokenizer_ = Tokenizer::load(kTokenizer);
};

TEST_F(TokenCacheTest, HoldsEveryDocument) {
  const auto cache = build();
  ASSERT_EQ(cache->documents(), std::ssize(texts_));
  EXPECT_EQ(cache->vocab(), tokenizer_->vocab());
  EXPECT_EQ(cache->document_begin(0), 0);
  EXPECT_EQ(cache->document_begin(cache->documents()), cache->tokens());
  for (std::int64_t i = 0; i < cache->documents(); ++i) {
    const std::int64_t begin = cache->document_begin(i);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(cache->document_begin(i + 1) - begin));
    cache->copy(begin, ids);
    ASSERT_EQ(ids, tokenizer_->encode(texts_[static_cast<std::size_t>(i)], true)) << i;
  }
}

TEST_F(TokenCacheTest, ThreadCountChangesNoBit) {
  build(1);
  const std::string one = read_text(path());
  build(3);
  EXPECT_EQ(read_text(path()), one);
}

TEST_F(TokenCacheTest, ReportsHowFarItIs) {
  ThreadPool pool(1);
  std::int64_t last = 0, all = 0;
  TokenCache::build(sources_, *tokenizer_, fingerprint_, path(), pool,
                    [&](std::int64_t done, std::int64_t of) {
                      EXPECT_GE(done, last);
                      last = done, all = of;
                    });
  EXPECT_EQ(last, all);
}

TEST_F(TokenCacheTest, RefusesOtherAndDamagedFiles) {
  build();
  const std::string good = read_text(path());
  const auto opening = [&] { TokenCache::open(path(), fingerprint_); };
  expect_error("made from other texts", [&] { TokenCache::open(path(), fingerprint_ + 1); });
  for (const std::size_t at : {std::size_t{0}, good.size() / 2, good.size() - 20}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    write_text(path(), bad);
    expect_error("expected a cache of tokens", opening);
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{55}, good.size() - 1}) {
    write_text(path(), good.substr(0, size));
    expect_error("expected a cache of tokens", opening);
  }
}

TEST_F(TokenCacheTest, ABadDocumentIsNamedAndNothingIsLeft) {
  write_text(folder_ / "a.txt",
             "good\n<|endoftext|>\nb\xff"
             "ad\n");
  expect_error("a.txt, document 2", [&] { build(); });
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_EQ(folder_.files(), 2u);
}

TEST_F(TokenCacheTest, TheFingerprintFollowsContentsAndFormat) {
  TokenSources other = sources_;
  other.format.separator = "--";
  EXPECT_NE(sources_fingerprint(other, kTokenizer), fingerprint_);
  other = sources_;
  std::swap(other.files[0], other.files[1]);
  EXPECT_NE(sources_fingerprint(other, kTokenizer), fingerprint_);
  std::filesystem::copy_file(folder_ / "b.jsonl", folder_ / "b.txt");
  other = sources_;
  other.files[1] = folder_ / "b.txt";  // the same bytes as text
  EXPECT_NE(sources_fingerprint(other, kTokenizer), fingerprint_);
  write_text(folder_ / "b.jsonl", "{\"text\": \"Another.\"}\n");
  EXPECT_NE(sources_fingerprint(sources_, kTokenizer), fingerprint_);
}

TEST_F(TokenCacheTest, RefusesTokensThatAreNotThere) {
  const auto cache = build();
  std::vector<std::int32_t> ids(2);
  EXPECT_THROW(cache->copy(cache->tokens() - 1, ids), Error);
  EXPECT_THROW(cache->copy(-1, ids), Error);
  EXPECT_THROW(cache->document_begin(cache->documents() + 1), Error);
}

}  // namespace
}  // namespace mamba3
