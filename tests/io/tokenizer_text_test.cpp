// Text through a tokenizer: long runs, ill-formed bytes, several threads; and the repair of
// streams.
#include <gtest/gtest.h>

#include <ctime>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/tokenizer_bpe.h"
#include "io/tokenizer_normalizer.h"
#include "io/tokenizer_utf8.h"
#include "mamba3/error.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {
namespace {

std::shared_ptr<const Tokenizer> fixture(const std::string& name) {
  return Tokenizer::load(std::filesystem::path(MAMBA3_TEST_DATA) / "io" / "tokenizer" / name);
}

std::string repeated(std::string_view unit, std::size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += unit;
  return out;
}

TEST(TokenizerText, LongRunsTakeLinearTime) {
  const std::clock_t start = std::clock();
  for (const char* name : {"llama3.json", "qwen2.json", "added.json", "llama3.ranks"}) {
    const auto tokenizer = fixture(name);
    for (const char* unit : {"a", " ", "\n", "\u4E00", "1", "\u0301\u0316", " <sp>", "<|"}) {
      const std::string text = repeated(unit, 200'000);
      EXPECT_GT(tokenizer->encode(text, false).size(), 0u) << name << " " << unit;
    }
  }
  EXPECT_LT(std::clock() - start, 30 * CLOCKS_PER_SEC);
}

TEST(TokenizerText, RefusesIllFormedBytesWithTheirPlace) {
  const auto tokenizer = fixture("gpt2.json");
  for (const char* bad :
       {"\x80", "\xC3", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xFF", "\xE4\xB8", "\xC3(", "\xF0\x9F\x98"}) {
    const std::string text = std::string("0123456789 fine ") + bad;
    try {
      tokenizer->encode(text, true);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("byte 16 of"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(tokenizer->encode(std::string_view("\0", 1), true).size(), 1u);
}

TEST(TokenizerText, TokenBytesMakeUpTheDecodedText) {
  for (const char* name : {"gpt2.json", "llama4.json", "added.json", "llama3.ranks"}) {
    const auto tokenizer = fixture(name);
    std::mt19937 random(7);
    for (int round = 0; round < 50; ++round) {
      std::vector<std::int32_t> ids;
      std::string all;
      std::string without_special;
      for (int i = 0; i < 20; ++i) {
        ids.push_back(static_cast<std::int32_t>(random() % tokenizer->vocab()));
        all += tokenizer->token_bytes(ids.back(), false);
        without_special += tokenizer->token_bytes(ids.back(), true);
      }
      EXPECT_EQ(tokenizer->decode(ids, false), all);
      EXPECT_EQ(tokenizer->decode(ids, true), without_special);
    }
  }
}

TEST(TokenizerText, ThreadsShareATokenizer) {
  const auto tokenizer = fixture("llama4.json");
  const std::string text = repeated("It's 1234 Wörter, <|eot|> 日本語\n\n  ", 20'000);
  const std::vector<std::int32_t> expected = tokenizer->encode(text, true);
  std::vector<std::vector<std::int32_t>> found(4);
  std::vector<std::thread> threads;
  for (auto& ids : found) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) ids = tokenizer->encode(text, true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& ids : found) EXPECT_EQ(ids, expected);
}

TEST(TokenizerText, NormalFormsOfAwkwardSequences) {
  const auto apply = [](const char* form, std::string_view text) {
    RegexDeadline deadline(text.size());
    return Normalizer::parse({{"type", form}}, "normalizer")->apply(text, deadline);
  };
  EXPECT_EQ(apply("NFC", "e\u0301"), "\u00E9");
  EXPECT_EQ(apply("NFC", "\u00E9\u0323"), "\u1EB9\u0301");  // taken apart, then put together
  EXPECT_EQ(apply("NFC", "\u1112\u1161\u11AB"), "\uD55C");
  EXPECT_EQ(apply("NFC", "\u212B\u2126"), "\u00C5\u03A9");
  EXPECT_EQ(apply("NFC", "a\u0301b\u0300"), "\u00E1b\u0300");
  EXPECT_EQ(apply("NFD", "\u00E9\u0323"), "e\u0323\u0301");
  EXPECT_EQ(apply("NFKC", "\uFB01\u2460"), "fi1");
  EXPECT_EQ(apply("NFKD", "\u1E9B\u0323"), "s\u0323\u0307");
  // Newer than the table of tokenizers: neither ordered nor composed.
  EXPECT_EQ(apply("NFC", "a\u0898\u0316"), "a\u0898\u0316");
  EXPECT_EQ(apply("NFC", "\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(apply("NFC", ""), "");
}

TEST(TokenizerText, LowestRankFirstThenLeftmost) {
  TokenTable tokens;
  for (const char* text : {"a", "b", "ab", "ba", "aba", "aa"}) {
    EXPECT_TRUE(tokens.add(text, false, static_cast<std::int32_t>(tokens.size())));
  }
  EXPECT_FALSE(tokens.add("ab", false, 99));
  EXPECT_EQ(tokens.index_ids(), std::nullopt);
  MergeTable merges(3);
  merges.set(1, 0, {0, 3});  // b a
  merges.set(0, 1, {1, 2});  // a b
  merges.set(0, 0, {2, 5});  // a a
  const BpeModel model(std::move(tokens), std::move(merges), false);
  BpeModel::Scratch scratch;
  const auto encode = [&](std::string_view word) {
    std::vector<std::int32_t> ids;
    model.encode(word, scratch, ids);
    return ids;
  };
  EXPECT_EQ(encode("abab"), (std::vector<std::int32_t>{0, 3, 1}));
  EXPECT_EQ(encode("aaaaa"), (std::vector<std::int32_t>{5, 5, 0}));
  EXPECT_EQ(encode("aab"), (std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(encode("x"), (std::vector<std::int32_t>{}));
  EXPECT_EQ(encode(""), (std::vector<std::int32_t>{}));
}

TEST(Utf8Stream, EveryCutGivesTheSameText) {
  const std::string text = "a\u00E9\u4E00\U0001F600 z";
  for (std::size_t first = 0; first <= text.size(); ++first) {
    for (std::size_t second = first; second <= text.size(); ++second) {
      Utf8Stream stream;
      std::string out;
      for (const auto& [begin, end] :
           {std::pair{std::size_t{0}, first}, {first, second}, {second, text.size()}}) {
        const std::string part = stream.push(std::string_view(text).substr(begin, end - begin));
        EXPECT_EQ(find_ill_formed(part), std::string::npos);
        out += part;
      }
      EXPECT_EQ(stream.finish(), "");
      EXPECT_EQ(out, text);
    }
  }
}

TEST(Utf8Stream, ReplacesEachIllFormedPartOnce) {
  const std::string kBad = "\uFFFD";
  const auto shown = [](std::string_view bytes) {
    Utf8Stream stream;
    const std::string out = stream.push(bytes);
    return out + stream.finish();
  };
  EXPECT_EQ(shown("\x80\x80"), kBad + kBad);
  EXPECT_EQ(shown("\xE4\xB8z"), kBad + "z");
  EXPECT_EQ(shown("\xE4\xB8"), kBad);
  EXPECT_EQ(shown("\xF0\x9F\x98"), kBad);
  EXPECT_EQ(shown("\xED\xA0\x80"), kBad + kBad + kBad);
  EXPECT_EQ(shown("\xF0\x80\x80"), kBad + kBad + kBad);
  EXPECT_EQ(shown("\xC3\xC3\xA9"), kBad + "\u00E9");
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xE4"), "");
  EXPECT_EQ(stream.push("\xB8"), "");
  EXPECT_EQ(stream.push("\x80!"), "\u4E00!");
  EXPECT_EQ(stream.push("\xE4"), "");
  EXPECT_EQ(stream.finish(), kBad);
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push("ok"), "ok");
}

}  // namespace
}  // namespace mamba3
