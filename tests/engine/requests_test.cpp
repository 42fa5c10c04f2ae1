#include "engine/requests.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/check.h"
#include "engine/byte_tokenizer.h"

namespace mamba3 {
namespace {

using Ids = std::vector<std::int32_t>;

// The message of the refusal, empty when there is none.
template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    return error.what();
  }
  return "";
}

ScoreRequest request_of(const std::string& json, std::int64_t vocab = 257) {
  const ByteTokenizer tokenizer;
  return to_score_request(parse_request_line(json, "r.jsonl line 7"), &tokenizer, vocab);
}

void expect_refused(const std::string& json, const std::string& reason) {
  const std::string found = refusal([&] { request_of(json); });
  EXPECT_NE(found.find("r.jsonl line 7"), std::string::npos) << json << ": " << found;
  EXPECT_NE(found.find(reason), std::string::npos) << json << ": " << found;
}

TEST(Requests, ReadsEveryForm) {
  EXPECT_EQ(request_of(R"({"text": "ab"})").ids, (Ids{256, 'a', 'b'}));
  EXPECT_EQ(request_of(R"({"ids": [7, 0, 256]})").ids, (Ids{7, 0, 256}));
  EXPECT_EQ(request_of(R"({"ids": []})").ids, Ids{});
  const ScoreRequest pair = request_of(R"({"context": "ab", "continuation": " c"})");
  EXPECT_EQ(pair.ids, (Ids{256, 'a', 'b', ' ', 'c'}));
  EXPECT_EQ(pair.first_scored, 3);
}

TEST(Requests, SkipsBlankLinesAndCountsThem) {
  std::vector<std::string> places;
  for_each_request("{\"ids\": []}\r\n\n \t \n{\"text\": \"\"}", "r.jsonl",
                   [&](const RequestLine& line) { places.push_back(line.where); });
  EXPECT_EQ(places, (std::vector<std::string>{"r.jsonl line 1", "r.jsonl line 4"}));
}

TEST(Requests, IgnoresFieldsThatAreNotOurs) {
  EXPECT_EQ(
      request_of(R"({"x": {"ids": ["y"], "text": [1]}, "ids": [3], "n": 1.5, "z": null})").ids,
      Ids{3});
}

TEST(Requests, SpaceAtTheEndOfAContextMovesToTheContinuation) {
  const ScoreRequest request = request_of(R"({"context": "a \u3000\t", "continuation": "b"})");
  EXPECT_EQ(request.first_scored, 2);
  EXPECT_EQ(request.ids.size(), 2u + 1 + 3 + 1 + 1);
}

TEST(Requests, AnEmptyContextNeedsSomethingToPredictFrom) {
  const ByteTokenizer with_bos(true), without_bos(false);
  const ScoreRequest with = encode_pair(with_bos, "", "ab", "here");
  const ScoreRequest without = encode_pair(without_bos, "", "ab", "here");
  EXPECT_EQ(with.ids, (Ids{256, 'a', 'b'}));
  EXPECT_EQ(without.ids, with.ids) << "the end-of-text token stands in";
  EXPECT_EQ(without.first_scored, 1);
}

TEST(Requests, RefusesWithTheLine) {
  expect_refused("[]", "is not an object");
  expect_refused("5", "is not an object");
  expect_refused(R"({"text": "a")", "not valid JSON");
  expect_refused(R"({"text": "a"} x)", "not valid JSON");
  expect_refused("{\"text\": \"\xff\"}", "not valid JSON");
  expect_refused(R"({"text": "\ud800"})", "not valid JSON");
  expect_refused(R"({"text": 5})", "\"text\" of the wrong kind");
  expect_refused(R"({"text": ["a"]})", "\"text\" of the wrong kind");
  expect_refused(R"({"ids": 5})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [[5]]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [5, "6"]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [5, -1]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [5, 1.0]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [99999999999999999999]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [4294967296]})", "\"ids\" of the wrong kind");
  expect_refused(R"({"ids": [1, 257]})", "id 257 at position 1");
  expect_refused(R"({"choices": "a"})",
                 "\"choices\" of the wrong kind; expected a list of strings");
  expect_refused(R"({"gold": 1.5})", "\"gold\" of the wrong kind; expected a whole number");
  expect_refused(R"({"gold": 18446744073709551615})", "\"gold\" of the wrong kind");
  expect_refused(R"({})", "exactly one of");
  expect_refused(R"({"context": "a"})", "exactly one of");
  expect_refused(R"({"text": "a", "ids": [1]})", "exactly one of");
}

TEST(Requests, TextNeedsATokenizerAndIdsDoNot) {
  const RequestLine ids = parse_request_line(R"({"ids": [1]})", "here");
  const RequestLine text = parse_request_line(R"({"text": "a"})", "here");
  EXPECT_EQ(to_score_request(ids, nullptr, 2).ids, Ids{1});
  EXPECT_NE(refusal([&] { to_score_request(text, nullptr, 2); }).find("tokenizer"),
            std::string::npos);
}

TEST(Requests, DeepNestingEndsInAnErrorNotInACrash) {
  const std::string deep(1 << 20, '[');
  EXPECT_NE(refusal([&] { parse_request_line("{\"x\": " + deep, "here"); }), "");
  EXPECT_NE(refusal([&] { parse_ids_json(deep, "here", 9); }), "");
}

TEST(IdLists, TellsAListFromAListOfLists) {
  EXPECT_FALSE(parse_ids_json("[1, 2]", "f", 9).nested);
  EXPECT_EQ(parse_ids_json("[1, 2]", "f", 9).lists, (std::vector<Ids>{{1, 2}}));
  EXPECT_EQ(parse_ids_json("[]", "f", 9).lists, std::vector<Ids>{Ids{}});
  const IdLists lists = parse_ids_json("[[1], [], [2, 3]]", "f", 9);
  EXPECT_TRUE(lists.nested);
  EXPECT_EQ(lists.lists, (std::vector<Ids>{{1}, {}, {2, 3}}));
  EXPECT_TRUE(parse_ids_json("[[]]", "f", 9).nested);
}

TEST(IdLists, RefusesEverythingElse) {
  for (const char* text : {"", "5", "{}", "\"a\"", "[1", "[1, [2]]", "[[1], 2]", "[[[1]]]", "[-1]",
                           "[1.5]", "[null]", "[9]", "[18446744073709551615]", "[{\"a\": 1}]"}) {
    EXPECT_NE(refusal([&] { parse_ids_json(text, "f", 9); }), "") << text;
  }
}

TEST(CommaIds, ReadsAndRefuses) {
  EXPECT_EQ(parse_ids("1, 2 ,3\n", "--prompt-ids", 9), (Ids{1, 2, 3}));
  EXPECT_EQ(parse_ids(" \n", "--prompt-ids", 9), Ids{});
  for (const char* text :
       {"1,", ",1", "1,,2", "a", "1 2", "-1", "9", "1.0", "+1", "0x1", "99999999999"}) {
    const std::string found = refusal([&] { parse_ids(text, "--prompt-ids", 9); });
    EXPECT_NE(found.find("--prompt-ids"), std::string::npos) << text;
  }
}

// Seeds named ok_* are read by one of the parsers, those named bad_* by none.
TEST(Requests, SeedsOfTheFuzzTargetAreWhatTheirNamesSay) {
  int seeds = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MAMBA3_REPOSITORY "/fuzz/corpus/requests_jsonl")) {
    std::stringstream bytes;
    bytes << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    const std::string text = bytes.str();
    const bool is_lines =
        refusal([&] { for_each_request(text, "seed", [](const RequestLine&) {}); }).empty();
    const bool is_list = refusal([&] { parse_ids_json(text, "seed", 257); }).empty();
    const bool is_ids = refusal([&] { parse_ids(text, "seed", 257); }).empty();
    const bool wanted = entry.path().filename().string().starts_with("ok_");
    EXPECT_EQ(is_lines || is_list || is_ids, wanted) << entry.path();
    ++seeds;
  }
  EXPECT_GT(seeds, 8);
}

// Pairs of the same letter are one id.
class PairTokenizer : public ByteTokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text, bool add_special) const override {
    std::vector<std::int32_t> ids;
    if (add_special) ids.push_back(256);
    for (std::size_t i = 0; i < text.size(); ++i) {
      const bool twice = i + 1 < text.size() && text[i] == text[i + 1];
      ids.push_back(static_cast<unsigned char>(text[i]) + (twice ? 128 : 0));
      i += twice ? 1 : 0;
    }
    return ids;
  }
};

TEST(Requests, AContinuationInsideTheContextsLastTokenIsScoredWithIt) {
  const PairTokenizer tokenizer;
  const ScoreRequest joined = encode_pair(tokenizer, "ab", "b", "here");
  EXPECT_EQ(joined.ids, (Ids{256, 'a', 'b' + 128}));
  EXPECT_EQ(joined.first_scored, 2);
  const ScoreRequest apart = encode_pair(tokenizer, "ab", "c", "here");
  EXPECT_EQ(apart.ids, (Ids{256, 'a', 'b', 'c'}));
  EXPECT_EQ(apart.first_scored, 3);
  const ScoreRequest nothing = encode_pair(tokenizer, "ab", "", "here");
  EXPECT_EQ(nothing.ids, (Ids{256, 'a', 'b'}));
  EXPECT_EQ(nothing.first_scored, 3);
}

}  // namespace
}  // namespace mamba3
