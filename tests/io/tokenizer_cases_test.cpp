// What Hugging Face's tokenizers and tiktoken made of awkward texts: equal ids, and equal back.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mamba3/tokenizer.h"

namespace mamba3 {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const std::filesystem::path kFolder = std::filesystem::path(MAMBA3_TEST_DATA) / "io" / "tokenizer";

// As a program that must show text: ill-formed bytes replaced.
std::string shown(const std::string& bytes) {
  Utf8Stream stream;
  const std::string text = stream.push(bytes);
  return text + stream.finish();
}

void expect_cases(const std::filesystem::path& tokenizer_path,
                  const std::filesystem::path& cases_path) {
  const auto tokenizer = Tokenizer::load(tokenizer_path);
  std::ifstream file(cases_path);
  ASSERT_TRUE(file.is_open()) << cases_path;
  int count = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const json test = json::parse(line);
    const std::string text = test.at("text");
    const Ids ids = test.at("ids");
    const Ids decode_ids = test.contains("decode_ids") ? test.at("decode_ids").get<Ids>() : ids;
    EXPECT_EQ(tokenizer->encode(text, true), ids) << test.at("text").dump();
    EXPECT_EQ(tokenizer->encode(text, false), test.at("ids_no_special").get<Ids>())
        << test.at("text").dump();
    EXPECT_EQ(shown(tokenizer->decode(decode_ids, true)), test.at("decoded").get<std::string>());
    EXPECT_EQ(shown(tokenizer->decode(decode_ids, false)),
              test.at("decoded_with_special").get<std::string>());
  }
  EXPECT_GE(count, 40);
}

class TokenizerStyle : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerStyle, EqualsItsLibrary) {
  const std::string name = GetParam();
  const bool is_ranks = name.ends_with(".ranks");
  expect_cases(kFolder / (is_ranks ? name : name + ".json"), kFolder / (name + ".jsonl"));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerStyle,
                         testing::Values("gpt2", "neox", "llama3", "llama4", "qwen2", "added",
                                         "splits", "unusual", "nfd", "llama3.ranks"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           for (char& c : name) c = c == '.' ? '_' : c;
                           return name;
                         });

TEST(TokenizerCases, BundledModel) {
  const std::filesystem::path models = std::filesystem::path(MAMBA3_REPOSITORY) / "models";
  bool found = false;
  if (std::filesystem::is_directory(models)) {
    for (const auto& entry : std::filesystem::directory_iterator(models)) {
      if (!std::filesystem::exists(entry.path() / "tokenizer.json")) continue;
      found = true;
      expect_cases(entry.path() / "tokenizer.json", kFolder / "bundled.jsonl");
    }
  }
  if (!found) GTEST_SKIP() << "no tokenizer.json under " << models;
}

TEST(TokenizerCases, SharedGolden) {
  const std::filesystem::path shared = MAMBA3_SHARED_DATA;
  const std::filesystem::path cases = shared / "golden" / "tokenizer" / "cases.jsonl";
  if (!std::filesystem::exists(cases)) GTEST_SKIP() << "no " << cases;
  expect_cases(shared / "models" / "siso-24m" / "tokenizer.json", cases);
}

}  // namespace
}  // namespace mamba3
