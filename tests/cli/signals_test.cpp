// Ctrl-C, readers that go away, full disks: every end is a clean one.
#include <gtest/gtest.h>

#include "cli/program.h"

namespace mamba3 {
namespace {

std::vector<std::string> endless(std::vector<std::string> more) {
  std::vector<std::string> arguments{"generate", "-m", tiny_model("siso"), "-p",
                                     "ab",       "-n", "100000000",        "--ignore-eos"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Signals, CtrlCEndsWithWhatWasProduced) {
  for (const int number : {SIGINT, SIGTERM}) {
    RunOptions options;
    bool sent = false;  // a second signal would end the program at once
    options.on_output = [number, &sent](pid_t process, const std::string& so_far) {
      if (so_far.size() > 20 && !sent) sent = ::kill(process, number) == 0;
      return true;
    };
    const Outcome outcome = run_mamba3(endless({}), options);
    EXPECT_EQ(outcome.code, 130) << "signal " << outcome.signal << " " << outcome.err;
    EXPECT_GT(outcome.out.size(), 20u);
    EXPECT_EQ(outcome.out.back(), '\n');
  }
}

TEST(Signals, AnInterruptedDocumentIsWhole) {
  TestFolder folder;
  Outcome outcome;
  // A slow machine may still be loading: then there is nothing to write.
  for (const int wait_ms : {200, 2000, 20000}) {
    RunOptions options;
    options.signal_after_ms = wait_ms;
    outcome = run_mamba3(endless({"--json", "--save-state", folder / "state"}), options);
    EXPECT_EQ(outcome.code, 130) << outcome.err;
    if (!outcome.out.empty()) break;
  }
  const auto sample = outcome.json()["samples"][0];
  EXPECT_EQ(sample["finish_reason"], "interrupted");
  EXPECT_EQ(sample["ids"].size(), sample["logprobs"].size());
  EXPECT_GT(std::filesystem::file_size(folder / "state"), 0u);
}

TEST(Signals, AnInterruptedWriterLeavesNothing) {
  TestFolder folder, out;
  write_file(
      folder / "config.json",
      R"({"d_model": 512, "n_layer": 2, "vocab_size": 60000, "ssm_cfg": {"layer": "Mamba3"}})");
  RunOptions options;
  options.signal_after_ms = 0;
  const Outcome outcome =
      run_mamba3({"init", "--config", folder / "config.json", "-o", out / "model"}, options);
  EXPECT_EQ(outcome.code, 130) << outcome.err;
  EXPECT_TRUE(std::filesystem::is_empty(out.path()));
}

TEST(Signals, CtrlCStopsAnAnswerNotTheTalk) {
  RunOptions options;
  options.input = "x\n";
  bool sent = false;
  options.on_output = [&sent](pid_t process, const std::string& so_far) {
    if (!sent && so_far.size() > 200) ::kill(process, SIGINT);
    sent = sent || so_far.size() > 200;
    return true;
  };
  const Outcome outcome = run_mamba3(
      {"generate", "-m", tiny_model("siso"), "-i", "-n", "20000", "--ignore-eos", "--temp", "0"},
      options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_LT(outcome.out.size(), 20000u);
}

TEST(Signals, AReaderThatGoesAwayIsNoError) {
  RunOptions options;
  options.on_output = [](pid_t, const std::string&) { return false; };
  const Outcome outcome = run_mamba3(endless({}), options);
  EXPECT_EQ(outcome.signal, 0);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
}

TEST(Signals, WithoutAReaderFilesAreWrittenAllTheSame) {
  const TestFolder folder;
  RunOptions options;
  options.on_output = [](pid_t, const std::string&) { return false; };
  const Outcome outcome = run_mamba3({"generate", "-m", tiny_model("siso"), "-p", "x", "-n", "3000",
                                      "--ignore-eos", "--save-state", folder / "state"},
                                     options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(std::filesystem::exists(folder / "state"));
}

TEST(Signals, AFullDiskIsAnError) {
  RunOptions options;
  options.out_path = "/dev/full";
  expect_error(run_mamba3(endless({}), options), 1, "stdout cannot be written");
  expect_error(run_mamba3({"--help"}, options), 1, "stdout cannot be written");
}

}  // namespace
}  // namespace mamba3
