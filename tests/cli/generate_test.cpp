// generate: text, JSON, streaming, states, turns.
#include <gtest/gtest.h>

#include <algorithm>

#include "cli/program.h"

namespace mamba3 {
namespace {

using nlohmann::json;

Outcome generate(const std::string& kind, std::vector<std::string> more,
                 const RunOptions& options = {}) {
  std::vector<std::string> arguments{"generate", "-m", tiny_model(kind),
                                     "--temp",   "0",  "--ignore-eos"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_mamba3(arguments, options);
}

std::vector<int> ids_of(const Outcome& outcome, int sample = 0) {
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return outcome.json()["samples"][sample]["ids"];
}

// "1,2,3" for ids begin ... end - 1.
std::string ids_text(int begin, int end) {
  std::string text;
  for (int i = begin; i < end; ++i) text += (i > begin ? "," : "") + std::to_string(i * 37 % 250);
  return text;
}

TEST(Generate, JsonHasTheKeysOfTheContract) {
  const Outcome outcome = generate("siso", {"-p", "ab", "-n", "6", "--json", "-s", "5"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  EXPECT_EQ(document["prompt_ids"], (std::vector<int>{256, 'a', 'b'}));
  ASSERT_EQ(document["samples"].size(), 1u);
  const json& sample = document["samples"][0];
  EXPECT_EQ(sample["ids"].size(), 6u);
  EXPECT_EQ(sample["logprobs"].size(), 6u);
  EXPECT_LT(sample["logprobs"][0], 0.0);
  EXPECT_EQ(sample["finish_reason"], "length");
  EXPECT_TRUE(sample["text"].is_string());
  for (const char* key : {"load_s", "prefill_s", "decode_s"}) {
    EXPECT_GT(document["timings"][key], 0.0) << key;
  }
  EXPECT_EQ(document["timings"]["prefill_tokens"], 3);
  EXPECT_EQ(document["timings"]["decode_tokens"], 6);
}

TEST(Generate, TextIsThePromptAndWhatJsonCallsText) {
  const Outcome text = generate("siso", {"-p", "ab\xc3\xbc", "-n", "20"});
  const Outcome as_json = generate("siso", {"-p", "ab\xc3\xbc", "-n", "20", "--json"});
  ASSERT_EQ(text.code, 0);
  EXPECT_EQ(text.out,
            "ab\xc3\xbc" + as_json.json()["samples"][0]["text"].get<std::string>() + "\n");
}

// A random model of single bytes writes many broken characters.
TEST(Generate, StreamsWholeCharactersOnly) {
  RunOptions options;
  std::size_t pieces = 0;
  options.on_output = [&](pid_t, const std::string& so_far) {
    ++pieces;
    EXPECT_NO_THROW(json(so_far).dump()) << "cut inside a character";
    return true;
  };
  const Outcome outcome = run_mamba3(
      {"generate", "-m", tiny_model("siso"), "--temp", "3", "--top-k", "0", "--top-p", "1",
       "--min-p", "0", "-s", "3", "--ignore-eos", "-p", "\xf0\x9f\x8c\x8a", "-n", "400"},
      options);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_GT(pieces, 1u) << "nothing was streamed";
}

TEST(Generate, PromptSourcesAgree) {
  TestFolder folder;
  write_file(folder / "prompt", "ab\n");
  RunOptions options;
  options.input = "ab";
  const auto ids = ids_of(generate("siso", {"-p", "ab", "-n", "4", "--json"}));
  EXPECT_EQ(ids_of(generate("siso", {"--prompt-file", folder / "prompt", "-n", "4", "--json"})),
            ids);
  EXPECT_EQ(ids_of(generate("siso", {"--prompt-file", "-", "-n", "4", "--json"}, options)), ids);
  EXPECT_EQ(ids_of(generate("siso", {"--prompt-ids", "256, 97,98", "-n", "4", "--json"})), ids);
}

TEST(Generate, RefusesBadPrompts) {
  expect_error(generate("siso", {"-p", "ab\xff", "-q"}), 1, "2");
  expect_error(generate("siso", {"--prompt-ids", "1,257", "-q"}), 1, "id 257 at position 1");
  expect_error(generate("siso", {"--prompt-ids", "1,,2", "-q"}), 1, "--prompt-ids");
  expect_error(generate("siso", {"--prompt-ids", "", "-q"}), 1, "prompt is empty");
  TestFolder folder;
  write_file(folder / "prompt", std::string("a\0\x80", 3));
  expect_error(generate("siso", {"--prompt-file", folder / "prompt", "-q"}), 1, "2");
}

TEST(Generate, StopTextsEndASampleAndAreLeftOut) {
  const std::string whole =
      generate("siso", {"-p", "x", "-n", "40", "--json"}).json()["samples"][0]["text"];
  ASSERT_GT(whole.size(), 8u);
  const std::string stop = whole.substr(whole.size() / 2, 2);
  const Outcome outcome =
      generate("siso", {"-p", "x", "-n", "40", "--json", "--stop", stop, "--stop", "[nope, no]"});
  const json sample = outcome.json()["samples"][0];
  EXPECT_EQ(sample["finish_reason"], "stop");
  EXPECT_EQ(sample["text"], whole.substr(0, whole.find(stop)));
}

TEST(Generate, SamplesShareAPromptAndFollowTheSeed) {
  const std::vector<std::string> arguments{"--prompt-ids", "5,6", "-n", "8", "--samples", "3",
                                           "--temp",       "1",   "-s", "11"};
  auto as_json = arguments;
  as_json.push_back("--json");
  const Outcome first = generate("mimo", as_json), again = generate("mimo", as_json);
  ASSERT_EQ(first.json()["samples"].size(), 3u);
  EXPECT_EQ(first.json()["samples"], again.json()["samples"]);
  EXPECT_EQ(first.json()["seed"], 11);
  EXPECT_NE(ids_of(first, 0), ids_of(first, 1));
  const Outcome text = generate("mimo", arguments);
  EXPECT_NE(text.out.find("\n--- sample 2 of 3 ---\n"), std::string::npos);
  EXPECT_NE(text.out.find("\n--- sample 3 of 3 ---\n"), std::string::npos);
}

TEST(Generate, WithoutATokenizerIdsWorkAndTextIsRefused) {
  const std::string golden = MAMBA3_TEST_DATA "/golden/lm_siso_fp32";
  const std::vector<std::string> model{"generate", "-q", "-m", golden, "--temp", "0", "-n", "3"};
  auto with_ids = model, with_text = model;
  with_ids.insert(with_ids.end(), {"--prompt-ids", "1,2"});
  with_text.insert(with_text.end(), {"-p", "a"});
  const Outcome text = run_mamba3(with_ids);
  EXPECT_EQ(text.code, 0);
  EXPECT_EQ(std::count(text.out.begin(), text.out.end(), ','), 2) << text.out;
  with_ids.push_back("--json");
  EXPECT_EQ(run_mamba3(with_ids).json()["samples"][0]["text"], "");
  expect_error(run_mamba3(with_text), 1, "tokenizer");
}

class States : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, States, testing::Values("siso", "mimo"));

TEST_P(States, AnyCutEqualsNoCut) {
  TestFolder folder;
  constexpr int kTokens = 70;
  const auto whole =
      ids_of(generate(GetParam(), {"--prompt-ids", ids_text(0, kTokens), "-n", "9", "--json"}));
  for (const int cut : {1, 31, 32, 33, 64, kTokens}) {
    const std::string state = folder / std::to_string(cut);
    const Outcome saved = generate(
        GetParam(), {"--prompt-ids", ids_text(0, cut), "-n", "0", "--save-state", state, "-q"});
    EXPECT_EQ(saved.code, 0) << saved.err;
    EXPECT_EQ(saved.out, "");
    if (cut == kTokens) continue;
    EXPECT_EQ(ids_of(generate(GetParam(), {"--prompt-ids", ids_text(cut, kTokens), "-n", "9",
                                           "--load-state", state, "--json"})),
              whole)
        << "cut at " << cut;
  }
}

TEST_P(States, GenerationGoesOnWhereItStopped) {
  TestFolder folder;
  const auto whole = ids_of(generate(GetParam(), {"--prompt-ids", "1,2,3", "-n", "12", "--json"}));
  auto ids = ids_of(generate(GetParam(), {"--prompt-ids", "1,2,3", "-n", "5", "--json",
                                          "--save-state", folder / "state"}));
  const auto rest =
      ids_of(generate(GetParam(), {"-n", "7", "--json", "--load-state", folder / "state"}));
  ids.insert(ids.end(), rest.begin(), rest.end());
  EXPECT_EQ(ids, whole);
}

TEST_P(States, TextAfterAStateGetsNoBos) {
  TestFolder folder;
  generate(GetParam(), {"-p", "ab", "-n", "0", "--save-state", folder / "state"});
  const Outcome rest =
      generate(GetParam(), {"-p", "cd", "-n", "5", "--json", "--load-state", folder / "state"});
  EXPECT_EQ(rest.json()["prompt_ids"], (std::vector<int>{'c', 'd'}));
  EXPECT_EQ(ids_of(rest), ids_of(generate(GetParam(), {"-p", "abcd", "-n", "5", "--json"})));
}

TEST_P(States, RefusesWhatIsNotAStateOfThisModel) {
  TestFolder folder;
  generate(GetParam(), {"-p", "ab", "-n", "0", "--save-state", folder / "state"});
  const std::string bytes = read_file(folder / "state");
  std::string damaged = bytes;
  damaged[damaged.size() / 2] ^= 0x40;
  write_file(folder / "damaged", damaged);
  write_file(folder / "short", bytes.substr(0, bytes.size() / 3));
  write_file(folder / "empty", "");
  write_file(folder / "long", bytes + "x");
  for (const char* name : {"damaged", "short", "empty", "long", "missing"}) {
    expect_error(generate(GetParam(), {"-q", "--prompt-ids", "5", "--load-state", folder / name}),
                 1, name);
  }
  const std::string other = std::string(GetParam()) == "siso" ? "mimo" : "siso";
  expect_error(generate(other, {"-q", "--prompt-ids", "5", "--load-state", folder / "state"}), 1,
               "another model");
}

TEST(StateFiles, AFileThatCannotBeWrittenIsAnErrorAndLeavesNothing) {
  TestFolder folder;
  const Outcome outcome = generate(
      "siso", {"-q", "-p", "a", "-n", "0", "--save-state", folder / "no/such/folder/state"});
  expect_error(outcome, 1, "no/such/folder");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Interactive, TurnsShareOneState) {
  TestFolder folder;
  RunOptions options;
  options.input = "cd\n";
  const Outcome turns =
      generate("siso", {"-i", "-p", "ab", "-n", "6", "--save-state", folder / "state"}, options);
  ASSERT_EQ(turns.code, 0) << turns.err;
  // The same by hand: what the first turn generated is read before the second line.
  const auto first =
      generate("siso", {"-p", "ab", "-n", "6", "--json", "--save-state", folder / "first"});
  const auto second = generate("siso", {"-p", "\ncd", "-n", "6", "--json", "--load-state",
                                        folder / "first", "--save-state", folder / "second"});
  const auto text = [](const Outcome& outcome) {
    return outcome.json()["samples"][0]["text"].get<std::string>();
  };
  EXPECT_EQ(turns.out, "ab" + text(first) + "\n" + text(second) + "\n");
  EXPECT_EQ(read_file(folder / "state"), read_file(folder / "second"));
}

TEST(Interactive, ALineThatCannotBeReadIsReportedAndTheTalkGoesOn) {
  RunOptions options;
  options.input = "a\xff\nb\n\n";
  const Outcome turns = generate("siso", {"-i", "-n", "3"}, options);
  EXPECT_EQ(turns.code, 0);
  EXPECT_NE(turns.err.find("mamba3: error: "), std::string::npos);
  EXPECT_NE(turns.out, "");
}

}  // namespace
}  // namespace mamba3
