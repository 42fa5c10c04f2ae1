// score: texts, requests, test sets, logits.
#include <gtest/gtest.h>

#include <cmath>

#include "cli/program.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

using nlohmann::json;

Outcome score(std::vector<std::string> more, const RunOptions& options = {}) {
  std::vector<std::string> arguments{"score", "-m", tiny_model("siso")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_mamba3(arguments, options);
}

std::vector<json> score_lines(const std::string& lines) {
  RunOptions options;
  options.input = lines;
  const Outcome outcome = score({"--requests", "-", "--json"}, options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return outcome.json_lines();
}

double sum(const json& numbers) {
  double total = 0;
  for (const json& number : numbers) total += number.get<double>();
  return total;
}

TEST(Score, RequestsGiveALineEach) {
  const auto rows = score_lines(R"({"context": "ab", "continuation": "cd"})"
                                "\n\n"
                                R"({"text": "abcd"})"
                                "\n"
                                R"({"ids": [256, 97, 98, 99, 100]})"
                                "\n"
                                R"({"ids": [5]})"
                                "\n"
                                R"({"text": ""})"
                                "\n");
  ASSERT_EQ(rows.size(), 5u);
  EXPECT_EQ(rows[0]["tokens"], 2);
  EXPECT_EQ(rows[1]["tokens"], 4);
  EXPECT_EQ(rows[1], rows[2]);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(rows[0]["token_logprobs"][i], rows[1]["token_logprobs"][i + 2]);
  }
  for (const json& row : rows) {
    EXPECT_NEAR(row["logprob"], sum(row["token_logprobs"]), 1e-6);
    EXPECT_TRUE(row["is_greedy"].is_boolean());
  }
  EXPECT_EQ(rows[3]["tokens"], 0);
  EXPECT_EQ(rows[4]["token_logprobs"], json::array());
}

TEST(Score, AGreedyContinuationIsGreedy) {
  const auto generated = run_mamba3({"generate", "-m", tiny_model("siso"), "--prompt-ids", "1,2",
                                     "-n", "3", "--temp", "0", "--ignore-eos", "--json"})
                             .json()["samples"][0];
  json ids = {1, 2};
  for (const json& id : generated["ids"]) ids.push_back(id);
  json other = ids;
  other.back() = (other.back().get<int>() + 1) % 257;
  const auto rows = score_lines(json{{"ids", ids}}.dump() + "\n" + json{{"ids", other}}.dump());
  EXPECT_FALSE(rows[1]["is_greedy"]);
  for (int i = 0; i < 3; ++i) {
    EXPECT_NEAR(rows[0]["token_logprobs"][i + 1], generated["logprobs"][i].get<double>(), 1e-5);
  }
}

TEST(Score, HostileLinesAreNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"text\": \"a\"}\n{\"text\"", "line 2"},
      {"{\"ids\": [1]}\n\n{\"ids\": [1, 300]}", "line 3"},
      {"{\"text\": \"\xff\"}", "line 1"},
      {"[]", "line 1"},
      {"{\"context\": \"a\"}", "line 1"},
      {std::string(200000, '['), "line 1"},
  };
  for (const auto& [lines, place] : cases) {
    RunOptions options;
    options.input = lines;
    expect_error(score({"--requests", "-"}, options), 1, place);
  }
}

// Documents one by one, as requests, are the truth.
TEST(Score, TextAsDocumentsAndInBlocks) {
  TestFolder folder;
  const std::vector<std::string> documents{"abcdef", "\nxy\nz\n",
                                           "\xc3\xbc" + std::string(50, 'q')};
  write_file(folder / "text",
             "--\n" + documents[0] + "\n--\n--\n" + documents[1] + "\n--\n" + documents[2]);
  std::string lines;
  double tokens = 0, bytes = 0;
  std::vector<int> ids;
  for (const std::string& document : documents) {
    lines += json{{"text", document}}.dump() + "\n";
    bytes += static_cast<double>(document.size());
    ids.push_back(256);
    for (const char c : document) ids.push_back(static_cast<unsigned char>(c));
  }
  double nats = 0;
  for (const json& row : score_lines(lines)) {
    nats -= row["logprob"].get<double>();
    tokens += row["tokens"].get<double>();
  }
  const json whole = score({"--text", folder / "text", "--separator", "--", "--json"}).json();
  EXPECT_EQ(whole["tokens"], tokens);
  EXPECT_EQ(whole["documents"], 3);
  EXPECT_EQ(whole["bytes"], bytes);
  EXPECT_NEAR(whole["nats_per_token"], nats / tokens, 1e-9);
  EXPECT_NEAR(whole["perplexity"], std::exp(nats / tokens), 1e-6);
  EXPECT_NEAR(whole["bits_per_byte"], nats / std::log(2.0) / bytes, 1e-9);
  write_file(folder / "text.jsonl", lines);
  EXPECT_EQ(score({"--text", folder / "text.jsonl", "--json"}).json(), whole);

  constexpr int kBlock = 16;
  lines.clear();
  std::size_t blocks = 0;
  for (std::size_t begin = 0; begin + kBlock < ids.size(); begin += kBlock, ++blocks) {
    lines += json{{"ids", std::vector<int>(ids.begin() + begin, ids.begin() + begin + kBlock + 1)}}
                 .dump() +
             "\n";
  }
  nats = 0;
  for (const json& row : score_lines(lines)) nats -= row["logprob"].get<double>();
  const json cut =
      score({"--text", folder / "text", "--separator", "--", "--block", "16", "--json"}).json();
  EXPECT_EQ(cut["blocks"], blocks);
  EXPECT_EQ(cut["tokens"], blocks * kBlock);
  const double per_token = nats / static_cast<double>(blocks * kBlock);
  EXPECT_NEAR(cut["nats_per_token"], per_token, 1e-9);
  EXPECT_NEAR(cut["bits_per_byte"],
              per_token / std::log(2.0) * static_cast<double>(ids.size()) / bytes, 1e-9);
  EXPECT_EQ(score({"--text", folder / "text", "--block", "16", "--blocks", "2", "--json"})
                .json()["tokens"],
            32);
  expect_error(score({"--text", folder / "text", "--block", "1000"}), 1, "--block");
}

TEST(Score, TaskCountsAndPerplexity) {
  TestFolder folder;
  write_file(folder / "cloze.jsonl",
             "{\"context\": \"ab\", \"continuation\": \"c\"}\n"
             "{\"context\": \"x\", \"continuation\": \"yz\"}\n");
  const auto rows = score_lines(
      "{\"context\": \"ab\", \"continuation\": \" c\"}\n"
      "{\"context\": \"x\", \"continuation\": \" yz\"}\n");
  const double mean = (rows[0]["logprob"].get<double>() + rows[1]["logprob"].get<double>()) / 2;
  const json cloze = score({"--task", folder / "cloze.jsonl", "--json"}).json();
  EXPECT_EQ(cloze["task"], "cloze");
  EXPECT_EQ(cloze["items"], 2);
  EXPECT_NEAR(cloze["perplexity"], std::exp(-mean), 1e-6);
  EXPECT_FALSE(cloze.contains("acc_norm"));

  write_file(folder / "choices.jsonl",
             "{\"query\": \"Question: q\", \"choices\": [\"a\", \"bcd\"], \"gold\": 0}\n");
  const json choices = score({"--task", folder / "choices.jsonl", "--json"}).json();
  EXPECT_EQ(choices["items"], 1);
  EXPECT_TRUE(choices.contains("acc") && choices.contains("acc_norm"));
  EXPECT_FALSE(choices.contains("perplexity"));

  write_file(folder / "bad.jsonl", "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}\n{}\n");
  expect_error(score({"--task", folder / "bad.jsonl"}), 1, "line 2");
  write_file(folder / "empty.jsonl", "\n");
  expect_error(score({"--task", folder / "empty.jsonl"}), 1, "no items");
}

TEST(Score, LogitsMeetTheGolden) {
  TestFolder folder;
  for (const char* kind : {"lm_siso_fp32", "lm_mimo2_fp32_expand1"}) {
    const std::string model = std::string(MAMBA3_TEST_DATA "/golden/") + kind;
    const TensorFile golden = read_safetensors(model + "/golden.safetensors");
    const TensorRef& ids = golden.tensors.at("ids");
    const TensorRef& logits = golden.tensors.at("logits");
    const auto* id = reinterpret_cast<const std::int64_t*>(ids.data);
    json lists = json::array();
    for (std::int64_t b = 0; b < ids.shape[0]; ++b) {
      lists.push_back(
          std::vector<std::int64_t>(id + b * ids.shape[1], id + (b + 1) * ids.shape[1]));
    }
    write_file(folder / "ids.json", lists.dump());
    const Outcome outcome = run_mamba3({"score", "-q", "-m", model, "--ids-file",
                                        folder / "ids.json", "--logits", folder / "out"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const TensorFile out = read_safetensors(folder / "out");
    const auto* want = reinterpret_cast<const double*>(logits.data);
    for (std::int64_t b = 0; b < ids.shape[0]; ++b) {
      const TensorRef& got = out.tensors.at("logits." + std::to_string(b));
      ASSERT_EQ(got.shape, (std::vector<std::int64_t>{logits.shape[1], logits.shape[2]}));
      const auto* value = reinterpret_cast<const float*>(got.data);
      for (std::int64_t i = 0; i < got.elements(); ++i) {
        ASSERT_NEAR(value[i], want[b * got.elements() + i], 2e-4) << kind << " " << b << " " << i;
      }
    }
  }
}

TEST(Score, AFlatListGivesOneTensorAndAnEmptyOneNoRows) {
  TestFolder folder;
  write_file(folder / "ids.json", "[1, 2, 3]");
  write_file(folder / "empty.json", "[]");
  write_file(folder / "bad.json", "[1, 300]");
  ASSERT_EQ(score({"--ids-file", folder / "ids.json", "--logits", folder / "out"}).code, 0);
  EXPECT_EQ(read_safetensors(folder / "out").tensors.at("logits").shape,
            (std::vector<std::int64_t>{3, 264}));
  ASSERT_EQ(score({"--ids-file", folder / "empty.json", "--logits", folder / "none"}).code, 0);
  EXPECT_EQ(read_safetensors(folder / "none").tensors.at("logits").shape,
            (std::vector<std::int64_t>{0, 264}));
  expect_error(score({"--ids-file", folder / "bad.json", "--logits", folder / "no"}), 1, "300");
  EXPECT_FALSE(std::filesystem::exists(folder / "no"));
}

}  // namespace
}  // namespace mamba3
