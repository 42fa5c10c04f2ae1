#include "engine/generate_lines.h"

#include <gtest/gtest.h>

#include "core/check.h"
#include "engine/byte_tokenizer.h"

namespace mamba3 {
namespace {

GenerateRequest parse(const std::string& json, const GenerateRequest& defaults = {}) {
  const ByteTokenizer tokenizer;
  return to_generate_request(parse_generate_line(json, "r.jsonl line 7"), defaults, &tokenizer,
                             257);
}

void expect_refused(const std::string& json, const std::string& reason) {
  try {
    parse(json);
    ADD_FAILURE() << json << " was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    const std::string text = error.what();
    EXPECT_NE(text.find("r.jsonl line 7"), std::string::npos) << text;
    EXPECT_NE(text.find(reason), std::string::npos) << json << ": " << text;
  }
}

TEST(GenerateLines, EveryFieldIsRead) {
  const GenerateRequest request = parse(
      R"({"prompt": "ab", "max_tokens": 7, "temperature": 1.5, "top_k": 3, "top_p": 0.25,
          "min_p": 0.125, "seed": 18446744073709551615, "stop": ["x", "yz"], "ignore_eos": true,
          "repeat_penalty": 1.25, "presence_penalty": -1, "frequency_penalty": 2})");
  EXPECT_EQ(request.prompt_ids, (std::vector<std::int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(request.max_tokens, 7);
  const SamplingParams want{.repeat_penalty = 1.25f,
                            .presence_penalty = -1,
                            .frequency_penalty = 2,
                            .temperature = 1.5f,
                            .top_k = 3,
                            .top_p = 0.25f,
                            .min_p = 0.125f};
  EXPECT_EQ(request.sampling, want);
  EXPECT_EQ(request.seed, ~std::uint64_t{0});
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_TRUE(request.ignore_eos);
}

TEST(GenerateLines, WhatALineDoesNotSayComesFromTheDefaults) {
  GenerateRequest defaults;
  defaults.max_tokens = 5;
  defaults.seed = 9;
  defaults.stop = {"q"};
  defaults.ignore_eos = true;
  defaults.sampling.top_k = 77;
  const GenerateRequest request = parse(R"({"prompt_ids": [5, 0, 256]})", defaults);
  EXPECT_EQ(request.prompt_ids, (std::vector<std::int32_t>{5, 0, 256}));
  EXPECT_EQ(request.max_tokens, 5);
  EXPECT_EQ(request.seed, 9u);
  EXPECT_EQ(request.stop, defaults.stop);
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.sampling, defaults.sampling);
  const GenerateRequest changed =
      parse(R"({"prompt": "", "stop": "end", "ignore_eos": false})", defaults);
  EXPECT_EQ(changed.stop, std::vector<std::string>{"end"});
  EXPECT_FALSE(changed.ignore_eos);
  EXPECT_TRUE(parse(R"({"prompt": "", "stop": []})", defaults).stop.empty());
}

TEST(GenerateLines, FieldsThatAreNotOursAreIgnored) {
  const GenerateRequest request = parse(
      R"({"id": {"prompt": 1, "stop": [[2]]}, "x": [{"seed": []}, "y"], "z": null, "prompt": "a"})");
  EXPECT_EQ(request.prompt_ids.size(), 2u);
}

TEST(GenerateLines, RefusesWhatCannotBe) {
  expect_refused("[1]", "is not an object");
  expect_refused("5", "is not an object");
  expect_refused(R"({"prompt": "a")", "not valid JSON");
  expect_refused("{}", "exactly one");
  expect_refused(R"({"prompt": "a", "prompt_ids": [1]})", "exactly one");
  expect_refused(R"({"prompt": 5})", "\"prompt\"");
  expect_refused(R"({"prompt": null})", "\"prompt\"");
  expect_refused(R"({"prompt": ["a"]})", "\"prompt\"");
  expect_refused(R"({"prompt_ids": "1"})", "\"prompt_ids\"");
  expect_refused(R"({"prompt_ids": [1, -1]})", "\"prompt_ids\"");
  expect_refused(R"({"prompt_ids": [1.5]})", "\"prompt_ids\"");
  expect_refused(R"({"prompt_ids": [[1]]})", "\"prompt_ids\"");
  expect_refused(R"({"prompt_ids": [4294967296]})", "\"prompt_ids\"");
  expect_refused(R"({"prompt_ids": [257]})", "id 257 at position 0");
  expect_refused(R"({"prompt": "a", "max_tokens": -1})", "max_tokens -1");
  expect_refused(R"({"prompt": "a", "max_tokens": 1.5})", "\"max_tokens\"");
  expect_refused(R"({"prompt": "a", "max_tokens": 18446744073709551615})", "\"max_tokens\"");
  expect_refused(R"({"prompt": "a", "top_k": 4294967296})", "top_k");
  expect_refused(R"({"prompt": "a", "top_k": -1})", "top_k");
  expect_refused(R"({"prompt": "a", "temperature": "hot"})", "\"temperature\"");
  expect_refused(R"({"prompt": "a", "temperature": -1})", "temperature is -1");
  expect_refused(R"({"prompt": "a", "temperature": 1e300})", "temperature is inf");
  expect_refused(R"({"prompt": "a", "top_p": 0})", "top-p is 0");
  expect_refused(R"({"prompt": "a", "min_p": 2})", "min-p is 2");
  expect_refused(R"({"prompt": "a", "seed": -1})", "\"seed\"");
  expect_refused(R"({"prompt": "a", "seed": 1.0})", "\"seed\"");
  expect_refused(R"({"prompt": "a", "stop": [1]})", "\"stop\"");
  expect_refused(R"({"prompt": "a", "stop": {"a": 1}})", "\"stop\"");
  expect_refused(R"({"prompt": "a", "ignore_eos": 1})", "\"ignore_eos\"");
  expect_refused("{\"prompt\": \"\xff\"}", "not valid JSON");
}

TEST(GenerateLines, TextNeedsATokenizerAndIdsDoNot) {
  const GenerateLine text = parse_generate_line(R"({"prompt": "a"})", "here");
  const GenerateLine ids = parse_generate_line(R"({"prompt_ids": [1]})", "here");
  EXPECT_THROW(to_generate_request(text, {}, nullptr, 257), Error);
  EXPECT_EQ(to_generate_request(ids, {}, nullptr, 257).prompt_ids.size(), 1u);
}

}  // namespace
}  // namespace mamba3
