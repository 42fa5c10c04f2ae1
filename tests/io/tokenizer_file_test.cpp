// Broken, hostile and unsupported tokenizer files: one clear error each.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mamba3/error.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {
namespace {

using nlohmann::json;

// A byte-level tokenizer of few letters.
json small_file() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 6, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [6],
                                           "tokens": ["<|endoftext|>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null,
      "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
      "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "c": 2, "\u0120": 3, "ab": 4, "abc": 5},
      "merges": [["a", "b"], ["ab", "c"]]}})");
}

std::string refusal(const std::string& text) {
  try {
    Tokenizer::parse_json(text, "file.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    const std::string what = error.what();
    EXPECT_TRUE(what.starts_with("file.json")) << what;
    EXPECT_NE(what.find("; expected"), std::string::npos) << what;
    return what;
  }
  return "accepted";
}

// The place of a value (a JSON pointer) and what to put there; an empty text takes it out.
struct Change {
  const char* place;
  std::string value;
};

void expect_refused(const std::vector<Change>& changes, const std::string& words) {
  json file = small_file();
  for (const Change& change : changes) {
    const json::json_pointer place(change.place);
    if (change.value.empty()) {
      file.at(place.parent_pointer()).erase(place.back());
    } else {
      file[place] = json::parse(change.value);
    }
  }
  const std::string what = refusal(file.dump());
  EXPECT_NE(what.find(words), std::string::npos) << what << "\n  expected: " << words;
}

TEST(TokenizerFile, ReadsTheSmallOne) {
  const auto tokenizer = Tokenizer::parse_json(small_file().dump(), "file.json");
  EXPECT_EQ(tokenizer->vocab(), 7);
  EXPECT_EQ(tokenizer->encode("abcab c", true), (std::vector<std::int32_t>{6, 5, 4, 3, 2}));
  EXPECT_EQ(tokenizer->encode("ab<|endoftext|>", false), (std::vector<std::int32_t>{4, 6}));
  // What has no token is left out before anything merges.
  EXPECT_EQ(tokenizer->encode("axb", false), (std::vector<std::int32_t>{4}));
  EXPECT_EQ(tokenizer->token_id("abc"), 5);
  EXPECT_EQ(tokenizer->token_id("\u0120"), 3);
  EXPECT_EQ(tokenizer->token_id("<|endoftext|>"), 6);
  EXPECT_EQ(tokenizer->token_id("abcd"), std::nullopt);
  EXPECT_EQ(tokenizer->token_id("\xFF"), std::nullopt);
  EXPECT_EQ(tokenizer->end_of_text(), 6);
  EXPECT_EQ(tokenizer->token_bytes(3, true), " ");
  EXPECT_EQ(tokenizer->token_bytes(6, true), "");
  EXPECT_EQ(tokenizer->token_bytes(6, false), "<|endoftext|>");
  EXPECT_THROW(tokenizer->token_bytes(7, false), Error);
  EXPECT_THROW(tokenizer->token_bytes(-1, false), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{0, 1'000'000}, true), Error);
}

TEST(TokenizerFile, RefusesWhatIsNoTokenizer) {
  EXPECT_NE(refusal("").find("is not valid JSON"), std::string::npos);
  EXPECT_NE(refusal("{\"model\": ").find("is not valid JSON"), std::string::npos);
  EXPECT_NE(refusal("[]").find("without a model"), std::string::npos);
  EXPECT_NE(refusal("{}").find("without a model"), std::string::npos);
  EXPECT_NE(refusal("{\"model\": 1}").find("the model lacks vocab"), std::string::npos);
  EXPECT_NE(refusal("{\"model\": {}} x").find("is not valid JSON"), std::string::npos);
  EXPECT_NE(refusal(std::string(100'000, '[')).find("nests deeper"), std::string::npos);
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  EXPECT_NE(refusal(deep).find("nests deeper"), std::string::npos);
  EXPECT_NE(refusal("{\"model\":{\"vocab\":{\"\\ud800\":0}}}").find("is not valid JSON"),
            std::string::npos);
  EXPECT_NE(refusal("{\"model\":{\"vocab\":{\"\xFF\":0}}}").find("is not valid JSON"),
            std::string::npos);
}

TEST(TokenizerFile, RefusesMillionsOfValues) {
  std::string many = "{\"model\": {}, \"added_tokens\": [0";
  for (int i = 0; i < 1'100'000; ++i) many += ",0";
  EXPECT_NE(refusal(many + "]}").find("a million values"), std::string::npos);
}

TEST(TokenizerFile, RefusesOtherModels) {
  expect_refused({{"/model/type", R"("WordPiece")"}}, "model.type is \"WordPiece\"");
  expect_refused({{"/model/type", "5"}}, "model.type is number");
  expect_refused({{"/model/dropout", "0.1"}}, "model.dropout is set to \"0.1\"");
  expect_refused({{"/model/unk_token", R"("a")"}}, "model.unk_token is set");
  expect_refused({{"/model/byte_fallback", "true"}}, "model.byte_fallback is set");
  expect_refused({{"/model/continuing_subword_prefix", R"("##")"}}, "continuing_subword_prefix");
  expect_refused({{"/model/end_of_word_suffix", R"("</w>")"}}, "end_of_word_suffix");
  expect_refused({{"/model/ignore_merges", R"("yes")"}}, "model.ignore_merges is string");
  expect_refused({{"/version", R"("2.0")"}}, "another version");
  expect_refused({{"/truncation", "{}"}}, "truncation is set");
  expect_refused({{"/padding", "{}"}}, "padding is set");
}

TEST(TokenizerFile, RefusesBrokenVocabularies) {
  expect_refused({{"/model/vocab", ""}}, "the model lacks vocab");
  expect_refused({{"/model/merges", ""}}, "the model lacks merges");
  expect_refused({{"/model/vocab", "[]"}}, "the model lacks vocab");
  expect_refused({{"/model/vocab", "{}"}, {"/model/merges", "[]"}}, "model.vocab is empty");
  expect_refused({{"/model/vocab", "{}"}}, "model.vocab is empty");
  expect_refused({{"/model/vocab/a", R"("0")"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "{}"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "[0]"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "null"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "0.5"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "-1"}}, "something that is no id");
  expect_refused({{"/model/vocab/a", "3000000000"}}, "the id 3000000000");
  expect_refused({{"/model/vocab/a", "2000000000"}}, "without large gaps");
  expect_refused({{"/model/vocab/a", "1"}}, "two tokens the id 1");
  EXPECT_NE(refusal(R"({"model":{"vocab":{"a":0,"a":1}}})").find("has \"a\" twice"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"model":{"vocab":{"a":0},"vocab":{}}})").find("a second model.vocab"),
            std::string::npos);
}

TEST(TokenizerFile, RefusesBrokenMerges) {
  expect_refused({{"/model/merges/0", R"(["a", "x"])"}}, "the token \"x\"");
  expect_refused({{"/model/merges/0", R"(["b", "a"])"}}, "the token \"ba\"");
  expect_refused({{"/model/merges/0", R"(["\u3042", "a"])"}}, "which model.vocab lacks");
  expect_refused({{"/model/merges/0", R"(["a"])"}}, "less than two");
  expect_refused({{"/model/merges/0", R"(["a", "b", "c"])"}}, "more than two");
  expect_refused({{"/model/merges/0", "5"}}, "an entry of another type");
  expect_refused({{"/model/merges/0/0", "5"}}, "an entry of another type");
  expect_refused({{"/model/merges/0/0", "[]"}}, "an entry of another type");
  expect_refused({{"/model/merges/0", R"("a b")"}}, "two kinds");
  expect_refused({{"/model/merges/1", R"("ab c")"}}, "two kinds");
  expect_refused({{"/model/merges", R"(["a b c"])"}}, "one blank");
  expect_refused({{"/model/merges", R"(["ab"])"}}, "one blank");
  expect_refused({{"/model/merges", "7"}}, "the model lacks merges");
}

TEST(TokenizerFile, RefusesBrokenAddedTokens) {
  expect_refused({{"/added_tokens", "1"}}, "added_tokens is number");
  expect_refused({{"/added_tokens/0", R"("x")"}}, "is string; expected an object");
  expect_refused({{"/added_tokens/0/lstrip", ""}}, "has no lstrip");
  expect_refused({{"/added_tokens/0/special", "1"}}, "special is number");
  expect_refused({{"/added_tokens/0/id", "-6"}}, "expected a whole number");
  expect_refused({{"/added_tokens/0/id", "7"}}, "the next free one");
  expect_refused({{"/added_tokens/0/content", R"("ab")"}}, "as in model.vocab");
  expect_refused({{"/added_tokens/0/content", '"' + std::string(600, 'x') + '"'}}, "of 600 bytes");
  const std::string token = small_file()["added_tokens"][0].dump();
  expect_refused({{"/added_tokens/1", token}, {"/added_tokens/1/id", "7"}}, "twice");
  expect_refused({{"/normalizer", R"({"type": "NFC"})"},
                  {"/added_tokens/1", token},
                  {"/added_tokens/0/content", R"("e\u0301")"},
                  {"/added_tokens/0/normalized", "true"},
                  {"/added_tokens/1/content", R"("\u00e9")"},
                  {"/added_tokens/1/normalized", "true"},
                  {"/added_tokens/1/id", "7"}},
                 "the same when normalized");
}

constexpr const char* kSplit =
    R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": false})";

TEST(TokenizerFile, RefusesOtherParts) {
  expect_refused({{"/normalizer", R"({"type": "Lowercase"})"}}, "normalizer.type is \"Lowercase\"");
  expect_refused({{"/normalizer", "[]"}}, "normalizer is array");
  expect_refused({{"/normalizer", R"({"type": "Sequence", "normalizers": [null]})"}}, "holds null");
  expect_refused({{"/normalizer", R"({"type": "Sequence"})"}}, "has no normalizers");
  expect_refused({{"/pre_tokenizer", "null"}}, "does not end with ByteLevel");
  expect_refused({{"/pre_tokenizer", R"({"type": "Metaspace"})"}}, "\"Metaspace\"");
  expect_refused({{"/pre_tokenizer", kSplit}}, "does not end with ByteLevel");
  expect_refused({{"/pre_tokenizer", kSplit}, {"/pre_tokenizer/pattern/Regex", R"("(a")"}},
                 "a ( without its )");
  expect_refused({{"/pre_tokenizer", kSplit}, {"/pre_tokenizer/behavior", R"("Joined")"}},
                 "behavior is \"Joined\"");
  expect_refused({{"/pre_tokenizer", kSplit}, {"/pre_tokenizer/pattern", R"({"String": ""})"}},
                 "is empty");
  expect_refused({{"/pre_tokenizer", kSplit}, {"/pre_tokenizer/pattern", "{}"}},
                 "expected {\"String\": ...}");
  expect_refused({{"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [)"
                                     R"({"type": "ByteLevel", "add_prefix_space": false}, )" +
                                         std::string(kSplit) + "]}"}},
                 "stands behind ByteLevel");
  expect_refused({{"/decoder", R"({"type": "WordPiece"})"}}, "decoder.type is \"WordPiece\"");
  expect_refused({{"/decoder", R"({"type": "Sequence", "decoders": [{"type": "Fuse"},)"
                               R"({"type": "ByteLevel"}]})"}},
                 "behind another decoder");
  expect_refused({{"/post_processor", R"({"type": "Other"})"}}, "\"Other\"");
  expect_refused({{"/post_processor/single", "[]"}}, "holds the text 0 times");
  expect_refused({{"/post_processor/single/1/Sequence/id", R"("B")"}}, "\"B\"");
  expect_refused({{"/post_processor/special_tokens", "{}"}}, "has no <|endoftext|>");
  expect_refused({{"/post_processor/special_tokens/<|endoftext|>/ids/0", "99"}}, "the id 99");
}

TEST(TokenizerFile, TooManySteps) {
  std::string steps = kSplit;
  for (int i = 0; i < 100; ++i) steps += std::string(",") + kSplit;
  expect_refused({{"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [)" + steps + "]}"}},
                 "more than 64");
}

TEST(TokenizerFile, HostileNormalizersDoNotGrowText) {
  json file = small_file();
  json step = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaa"}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  for (int i = 0; i < 30; ++i) file["normalizer"]["normalizers"].push_back(step);
  const auto tokenizer = Tokenizer::parse_json(file.dump(), "file.json");
  EXPECT_THROW(tokenizer->encode("a", false), Error);
  EXPECT_EQ(tokenizer->encode("b", false).size(), 1u);
}

// Merges before the vocabulary, lines instead of pairs, an empty list of added tokens.
TEST(TokenizerFile, OtherOrdersAndForms) {
  const std::string text =
      R"({"model": {"merges": ["#version: 0.2", "a b"], "vocab": {"ab": 2, "a": 0, "b": 1}},)"
      R"("decoder": {"type": "ByteLevel"},)"
      R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})";
  const auto tokenizer = Tokenizer::parse_json(text, "file.json");
  EXPECT_EQ(tokenizer->encode("aab", true), (std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(tokenizer->end_of_text(), std::nullopt);
}

TEST(TokenizerFile, EveryTruncationIsRefused) {
  const std::string text = small_file().dump();
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_NE(refusal(text.substr(0, size)), "accepted") << size;
  }
}

class LoadedFile : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string load_refusal(const std::string& content) {
    std::ofstream(path_, std::ios::binary) << content;
    try {
      Tokenizer::load(path_);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  const std::filesystem::path path_ =
      std::filesystem::temp_directory_path() /
      ("mamba3_tokenizer_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)));
};

TEST_F(LoadedFile, IsToldApartByItsContents) {
  EXPECT_EQ(load_refusal(small_file().dump()), "accepted");
  EXPECT_EQ(load_refusal("\n  " + small_file().dump()), "accepted");
  EXPECT_NE(load_refusal("").find("is empty"), std::string::npos);
  EXPECT_NE(load_refusal(" \n ").find("is empty"), std::string::npos);
  EXPECT_NE(load_refusal(std::string("\n\x0E\n\x05<unk>\x15\0\0\0\0", 14)).find("SentencePiece"),
            std::string::npos);
  EXPECT_NE(load_refusal("hello").find("expected lines of a base64 token"), std::string::npos);
  EXPECT_THROW(Tokenizer::load(path_ / "missing"), Error);
  EXPECT_THROW(Tokenizer::load(path_.parent_path()), Error);
}

// All 256 bytes; base64 of one byte is two digits and "==".
std::string byte_ranks() {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (int byte = 0; byte < 256; ++byte) {
    out += {kDigits[byte >> 2], kDigits[(byte & 3) << 4], '=', '='};
    out += ' ' + std::to_string(byte) + '\n';
  }
  return out;
}

std::string rank_refusal(const std::string& text) {
  try {
    Tokenizer::parse_ranks(text, "ranks");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(TokenizerRanks, BrokenFiles) {
  const std::string good = byte_ranks();
  EXPECT_EQ(rank_refusal(good), "accepted");
  EXPECT_EQ(rank_refusal(good + "\r\n"), "accepted");
  EXPECT_NE(rank_refusal("").find("0 tokens"), std::string::npos);
  EXPECT_NE(rank_refusal("YQ== 0\n").find("lacks single bytes"), std::string::npos);
  EXPECT_NE(rank_refusal(good + "YWI= 257\n").find("without a gap"), std::string::npos);
  EXPECT_NE(rank_refusal(good + "YWI= 255\n").find("rank"), std::string::npos);
  EXPECT_NE(rank_refusal(good + "YQ== 256\n").find("twice"), std::string::npos);
  for (const char* line : {"YWI=", "YWI= ", "YWI= -1", "YWI= x", "YWI= 1 2", "YWI 256", "Y=I= 256",
                           "YWJ= 256", "!!!! 256", " 256", "== 256", "YWI= 99999999999"}) {
    EXPECT_NE(rank_refusal(good + line).find("expected lines of"), std::string::npos) << line;
  }
}

TEST(TokenizerRanks, SpecialTokensOfLlama3) {
  const auto tokenizer = Tokenizer::parse_ranks(byte_ranks() + "YWI= 256\nYWJj 257\n", "ranks");
  EXPECT_EQ(tokenizer->vocab(), 258 + 256);
  EXPECT_EQ(tokenizer->token_id("<|begin_of_text|>"), 258);
  EXPECT_EQ(tokenizer->end_of_text(), 259);
  EXPECT_EQ(tokenizer->token_id("<|reserved_special_token_3|>"), 258 + 5);
  EXPECT_EQ(tokenizer->token_id("<|start_header_id|>"), 258 + 6);
  EXPECT_EQ(tokenizer->token_id("<|eot_id|>"), 258 + 9);
  EXPECT_EQ(tokenizer->token_id("<|reserved_special_token_250|>"), 258 + 255);
  EXPECT_EQ(tokenizer->encode("abcab", true), (std::vector<std::int32_t>{258, 257, 256}));
}

}  // namespace
}  // namespace mamba3
