// generate --requests: JSON lines in, JSON lines out.
#include <gtest/gtest.h>

#include <algorithm>

#include "cli/program.h"

namespace mamba3 {
namespace {

using nlohmann::json;

Outcome generate(std::vector<std::string> more, const RunOptions& options = {}) {
  std::vector<std::string> arguments{"generate", "-q", "-m", tiny_model("siso")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_mamba3(arguments, options);
}

std::string lines_of(const std::vector<json>& requests) {
  std::string text;
  for (const json& request : requests) text += request.dump() + "\n";
  return text;
}

const std::vector<json> kRequests = {
    {{"prompt", "ab"}, {"max_tokens", 9}, {"temperature", 0}},
    {{"prompt_ids", {5, 6, 7}}, {"max_tokens", 30}, {"seed", 3}, {"temperature", 1.5}},
    {{"prompt", "the quick brown fox jumps over the lazy dog"},
     {"max_tokens", 4},
     {"seed", 4},
     {"top_k", 0},
     {"top_p", 0.5}},
    {{"prompt", "x"}, {"max_tokens", 0}},
    {{"prompt", "y"}, {"max_tokens", 12}, {"seed", 5}, {"repeat_penalty", 2.0}},
};

// What the command line gives for one of them.
json alone(const json& request) {
  const auto text = [](const json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  std::vector<std::string> arguments = {"--json", "--ignore-eos"};
  std::string ids;
  if (request.contains("prompt_ids")) {
    for (const json& id : request["prompt_ids"]) ids += (ids.empty() ? "" : ",") + id.dump();
    arguments.insert(arguments.end(), {"--prompt-ids", ids});
  } else {
    arguments.insert(arguments.end(), {"-p", request["prompt"].get<std::string>()});
  }
  const std::pair<const char*, const char*> options[] = {
      {"max_tokens", "-n"}, {"temperature", "--temp"}, {"seed", "-s"},
      {"top_k", "--top-k"}, {"top_p", "--top-p"},      {"repeat_penalty", "--repeat-penalty"}};
  for (const auto& [key, option] : options) {
    if (request.contains(key)) arguments.insert(arguments.end(), {option, text(request[key])});
  }
  const Outcome outcome = generate(arguments);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return outcome.json()["samples"][0];
}

TEST(GenerateRequests, EachIsAnsweredAsAloneInTheOrderOfTheLines) {
  TestFolder folder;
  write_file(folder / "requests", lines_of(kRequests) + "\n");
  std::vector<json> wanted;
  for (const json& request : kRequests) wanted.push_back(alone(request));
  for (const char* batch : {"1", "2", "8"}) {
    const Outcome outcome =
        generate({"--requests", folder / "requests", "--batch", batch, "--ignore-eos"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> lines = outcome.json_lines();
    ASSERT_EQ(lines.size(), kRequests.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      EXPECT_EQ(lines[i]["index"], i);
      for (const char* key : {"ids", "text", "finish_reason", "logprobs"}) {
        EXPECT_EQ(lines[i][key], wanted[i][key]) << key << " of request " << i;
      }
    }
  }
}

TEST(GenerateRequests, BadLinesAreAnsweredWithAnErrorAndTheOthersGoOn) {
  RunOptions options;
  options.input =
      "{\"prompt\": \"a\", \"max_tokens\": 2}\n"
      "nonsense\n"
      "\n"
      "{\"prompt\": \"b\", \"top_p\": 7}\n"
      "{\"prompt_ids\": []}\n"
      "{\"prompt_ids\": [99999]}\n"
      "{\"prompt\": \"c\", \"stop\": \"\"}\n"
      "{\"prompt\": \"d\", \"max_tokens\": 3}";
  const Outcome outcome = generate({"--requests", "-", "--ignore-eos"}, options);
  EXPECT_EQ(outcome.code, 1);
  const std::vector<json> lines = outcome.json_lines();
  ASSERT_EQ(lines.size(), 7u);
  const char* reasons[] = {"",
                           "line 2 is not valid JSON",
                           "top-p is 7",
                           "prompt is empty",
                           "99999",
                           "stop text is empty",
                           ""};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(lines[i]["index"], i);
    const std::string reason = reasons[i];
    EXPECT_EQ(lines[i].contains("error"), !reason.empty()) << lines[i];
    if (reason.empty()) {
      EXPECT_EQ(lines[i]["ids"].size(), i == 0 ? 2u : 3u);
    } else {
      EXPECT_NE(lines[i]["error"].get<std::string>().find(reason), std::string::npos) << lines[i];
    }
  }
}

TEST(GenerateRequests, OptionsAreDefaultsAndSeedsCountUp) {
  RunOptions options;
  options.input = "{\"prompt\": \"a\"}\n{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"seed\": 7}\n";
  const Outcome outcome =
      generate({"--requests", "-", "-n", "12", "-s", "6", "--temp", "2", "--ignore-eos"}, options);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<json> lines = outcome.json_lines();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["seed"], 6);
  EXPECT_EQ(lines[1]["seed"], 7);
  EXPECT_EQ(lines[0]["ids"].size(), 12u);
  EXPECT_NE(lines[0]["ids"], lines[1]["ids"]);
  EXPECT_EQ(lines[1]["ids"], lines[2]["ids"]);
}

TEST(GenerateRequests, AnEmptyFileHasNoAnswers) {
  RunOptions options;
  options.input = "\n \n";
  const Outcome outcome = generate({"--requests", "-"}, options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
}

TEST(GenerateRequests, AnInterruptAnswersWithWhatIsThere) {
  RunOptions options;
  for (int i = 0; i < 40; ++i) {
    options.input +=
        "{\"prompt\": \"a\", \"max_tokens\": " + std::string(i == 0 ? "3" : "100000000") + "}\n";
  }
  options.on_output = [](pid_t process, const std::string& so_far) {
    // The first answer is there: the others are under way.
    if (std::count(so_far.begin(), so_far.end(), '\n') == 1) kill(process, SIGINT);
    return true;
  };
  const Outcome outcome = generate({"--requests", "-", "--ignore-eos", "--batch", "4"}, options);
  EXPECT_EQ(outcome.code, 130) << outcome.err;
  const std::vector<json> lines = outcome.json_lines();
  ASSERT_GE(lines.size(), 4u);
  EXPECT_EQ(lines[0]["finish_reason"], "length");
  EXPECT_EQ(lines[1]["finish_reason"], "interrupted");
  EXPECT_GT(lines[1]["ids"].size(), 0u);
}

TEST(GenerateRequests, RefusesOptionsThatContradict) {
  expect_error(generate({"--requests", "f", "-p", "a"}), 2, "--requests");
  expect_error(generate({"--requests", "f", "--samples", "2"}), 2, "--requests");
  expect_error(generate({"--requests", "f", "--save-state", "s"}), 2, "--requests");
  expect_error(generate({"--batch", "2", "-p", "a"}), 2, "--batch");
  expect_error(generate({"--requests", "f", "--batch", "0"}), 2, "--batch");
  expect_error(generate({"--requests", "/no/such/file"}), 1, "/no/such/file");
}

}  // namespace
}  // namespace mamba3
