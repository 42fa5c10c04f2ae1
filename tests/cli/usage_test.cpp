// Exit codes, messages, help, environment: what every command has in common.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>

#include "cli/program.h"

namespace mamba3 {
namespace {

const char* const kCommands[] = {"generate", "score", "tokenize", "inspect",
                                 "convert",  "init",  "verify",   "bench"};

std::vector<std::string> generate(std::vector<std::string> more) {
  std::vector<std::string> arguments{"generate",     "-q", "-m", tiny_model("siso"), "--temp", "0",
                                     "--ignore-eos", "-n", "3"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Usage, HelpAndVersionAreResults) {
  const Outcome help = run_mamba3({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_EQ(help.err, "");
  for (const char* command : kCommands) {
    EXPECT_NE(help.out.find(command), std::string::npos) << command;
    const Outcome of_command = run_mamba3({command, "--help"});
    EXPECT_EQ(of_command.code, 0);
    for (const char* option : {"--model", "--tokenizer", "--device", "--dtype", "--threads",
                               "--seed", "--a-activation", "--json", "--quiet", "--verbose"}) {
      EXPECT_NE(of_command.out.find(option), std::string::npos) << command << " " << option;
    }
    EXPECT_EQ(run_mamba3({command, "--version"}).code, 0);
  }
  const Outcome version = run_mamba3({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("mamba3 ", 0), 0u);
}

TEST(Usage, WrongUsageIsExitCode2) {
  expect_error(run_mamba3({}), 2, "generate, score");
  expect_error(run_mamba3({"frobnicate"}), 2, "generate, score");
  expect_error(run_mamba3({"generate", "--frobnicate"}), 2, "--frobnicate");
  expect_error(run_mamba3({"generate"}), 2, "there is no prompt");
  expect_error(run_mamba3(generate({"-p", "a", "--prompt-ids", "1"})), 2, "more than once");
  expect_error(run_mamba3(generate({"-p", "a", "-n", "-1"})), 2, "--max-tokens: found '-1'");
  expect_error(run_mamba3(generate({"-p", "a", "-n", "1.5"})), 2, "--max-tokens");
  expect_error(run_mamba3(generate({"-p", "a", "--temp", "nan"})), 2, "--temp: found 'nan'");
  expect_error(run_mamba3(generate({"-p", "a", "--top-p", "1.5"})), 2, "--top-p");
  expect_error(run_mamba3(generate({"-p", "a", "--dtype", "fp8"})), 2, "auto, fp32, bf16");
  expect_error(run_mamba3(generate({"-p", "a", "--device", "gpu"})), 2, "--device");
  expect_error(run_mamba3(generate({"-p", "a", "--stop", ""})), 2, "--stop");
  expect_error(run_mamba3(generate({"-i", "--json"})), 2, "--interactive");
  expect_error(run_mamba3({"score", "-m", tiny_model("siso")}), 2, "exactly one");
  expect_error(run_mamba3({"convert", "-m", tiny_model("siso")}), 2, "--output");
  expect_error(run_mamba3({"verify"}), 2, "paths");
}

TEST(Usage, WhatThisMachineCannotDoIsExitCode3) {
  expect_error(run_mamba3(generate({"-p", "a", "--device", "cuda"})), 3, "GPU");
  expect_error(run_mamba3(generate({"-p", "a", "--device", "cuda:1"})), 3, "GPU");
}

TEST(Usage, MissingFilesAreExitCode1) {
  expect_error(run_mamba3({"generate", "-m", "/nowhere", "-p", "a"}), 1, "/nowhere");
  expect_error(run_mamba3({"inspect", "-m", "/nowhere"}), 1, "/nowhere");
  expect_error(run_mamba3({"verify", "/nowhere"}), 1, "/nowhere");
  expect_error(run_mamba3({"tokenize", "--tokenizer", "/nowhere"}), 1, "/nowhere");
  expect_error(run_mamba3(generate({"--prompt-file", "/nowhere"})), 1, "/nowhere");
  expect_error(run_mamba3(generate({"--prompt-file", "/tmp"})), 1, "/tmp");
  expect_error(run_mamba3({"score", "-m", tiny_model("siso"), "--requests", "/nowhere"}), 1,
               "/nowhere");
}

TEST(Usage, EveryOptionIsAlsoReadFromTheEnvironment) {
  RunOptions options;
  options.environment = {{"MAMBA3_MODEL", tiny_model("siso")},
                         {"MAMBA3_MAX_TOKENS", "4"},
                         {"MAMBA3_PROMPT_IDS", "1,2"},
                         {"MAMBA3_TEMP", "0"},
                         {"MAMBA3_JSON", "1"},
                         {"MAMBA3_IGNORE_EOS", "true"},
                         {"MAMBA3_QUIET", "1"}};
  const Outcome all = run_mamba3({"generate"}, options);
  ASSERT_EQ(all.code, 0) << all.err;
  EXPECT_EQ(all.json()["prompt_ids"], (std::vector<int>{1, 2}));
  EXPECT_EQ(all.json()["samples"][0]["ids"].size(), 4u);
  EXPECT_EQ(all.err, "");
  const Outcome flag = run_mamba3({"generate", "-n", "2", "--prompt-ids", "3"}, options);
  EXPECT_EQ(flag.json()["prompt_ids"], std::vector<int>{3});
  EXPECT_EQ(flag.json()["samples"][0]["ids"].size(), 2u);
  options.environment["MAMBA3_MAX_TOKENS"] = "many";
  expect_error(run_mamba3({"generate"}, options), 2, "--max-tokens: found 'many'");
}

TEST(Usage, TheLastOfRepeatedOptionsCounts) {
  const Outcome outcome = run_mamba3(generate({"-p", "a", "-n", "7", "-n", "2", "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["samples"][0]["ids"].size(), 2u);
}

TEST(Usage, TheDefaultOfAIsSaidOnceUnlessQuiet) {
  const std::string golden = MAMBA3_TEST_DATA "/golden/lm_siso_fp32";
  const Outcome loud = run_mamba3({"generate", "-m", golden, "--prompt-ids", "1", "-n", "1"});
  const std::size_t said = loud.err.find("using heavy-tail");
  ASSERT_NE(said, std::string::npos);
  EXPECT_EQ(loud.err.find("using heavy-tail", said + 1), std::string::npos);
  EXPECT_EQ(run_mamba3({"generate", "-q", "-m", golden, "--prompt-ids", "1", "-n", "1"}).err, "");
  EXPECT_EQ(run_mamba3({"generate", "-m", golden, "--prompt-ids", "1", "-n", "1", "--a-activation",
                        "softplus"})
                .err,
            "");
}

TEST(Usage, NoProgressWithoutATerminal) {
  const Outcome outcome = run_mamba3(generate({"-p", std::string(3000, 'a')}));
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
}

TEST(Usage, OnlyTheCommandsOwnVariablesAreRead) {
  RunOptions options;
  options.environment = {{"MAMBA3_STEPS", "abc"}, {"MAMBA3_SAMPLES", "abc"}};
  options.input = "a";
  const std::vector<std::string> tokenize{"tokenize", "-m", tiny_model("siso")};
  EXPECT_EQ(run_mamba3(tokenize, options).code, 0);
  options.environment = {{"MAMBA3_DTYPE", "abc"}};
  expect_error(run_mamba3(tokenize, options), 2, "--dtype: found 'abc'");
  auto given = tokenize;
  given.insert(given.end(), {"--dtype", "fp32"});
  EXPECT_EQ(run_mamba3(given, options).code, 0);  // the flag wins
}

TEST(Usage, ErrorsNameTheVariablesThatTheySpeakOf) {
  RunOptions options;
  options.environment = {{"MAMBA3_BATCH", "4"}, {"MAMBA3_SEED", "1"}};
  const Outcome apart = run_mamba3(generate({"-p", "a"}), options);
  expect_error(apart, 2, "--batch is given without --requests");
  EXPECT_NE(apart.err.find("; the environment has MAMBA3_BATCH\n"), std::string::npos) << apart.err;
  options.environment["MAMBA3_BATCH"] = "x";
  expect_error(run_mamba3(generate({"-p", "a"}), options), 2, "the environment has MAMBA3_BATCH;");
  const Outcome given = run_mamba3(generate({"-p", "a", "--batch=y"}), options);
  expect_error(given, 2, "--batch: found 'y'");
  EXPECT_EQ(given.err.find("environment"), std::string::npos) << given.err;
  options.environment = {{"MAMBA3_MAX_TOKENS", "4"}};
  const Outcome attached = run_mamba3({"generate", "-p", "a", "-nz"}, options);
  expect_error(attached, 2, "--max-tokens: found 'z'");
  EXPECT_EQ(attached.err.find("environment"), std::string::npos) << attached.err;
}

TEST(Usage, NamesAndNumbersThatMeanNothing) {
  expect_error(run_mamba3(generate({"-p", "a", "--load-state", ""})), 2, "found an empty name");
  expect_error(run_mamba3({"inspect", "-m", ""}), 2, "--model: found an empty name");
  expect_error(run_mamba3(generate({"-p", "a", "--top-p", "0"})), 2, "a number above 0, at most 1");
  expect_error(run_mamba3(generate({"-p", "a", "--save-state", "/nowhere/x"})), 1,
               "--save-state: \"/nowhere/x\" is in \"/nowhere\", which is no folder");
  expect_error(run_mamba3({"bench", "train", "-m", tiny_model("siso")}), 2, "-m is given to bench");
  expect_error(run_mamba3({"bench", "decode", "--preset", "siso-25m"}), 2, "siso-24m, mimo-24m");
  expect_error(run_mamba3({"bench", "prefill", "--tokens", "99999999999"}), 2, "to 16777216");
  expect_error(run_mamba3({"bench", "prefill", "--tokens", "8,"}), 2, "ends with a comma");
}

TEST(Usage, SeedsHave64Bits) {
  const std::string largest = "18446744073709551615";
  const Outcome outcome = run_mamba3(generate({"-p", "a", "-s", largest, "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["seed"], UINT64_MAX);
  expect_error(run_mamba3(generate({"-p", "a", "-s", largest + "0"})), 2, "to " + largest);
}

// Messages and results would otherwise end in the first file that is opened.
TEST(Usage, AClosedStreamIsNoFileOfOurs) {
  const TestFolder folder;
  const std::string state = folder / "state";
  const std::string command = std::string(MAMBA3_CLI) + " generate -m " + tiny_model("siso") +
                              " -p a -n 2 --temp 0 --save-state " + state;
  ASSERT_EQ(std::system((command + " >/dev/null 2>/dev/null").c_str()), 0);
  const std::string good = read_file(state);
  std::filesystem::remove(state);
  const int closed = std::system((command + " >&- 2>/dev/null").c_str());
  EXPECT_EQ(WEXITSTATUS(closed), 1);
  ASSERT_EQ(std::system((command + " -v 2>&- >/dev/null").c_str()), 0);
  EXPECT_TRUE(read_file(state) == good);
}

// Names may hold what moves a terminal.
TEST(Usage, MessagesHoldNoControlCharacters) {
  const Outcome outcome = run_mamba3({"generate", "--\x1b[31m"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.err.find("--\\x1b[31m"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace mamba3
