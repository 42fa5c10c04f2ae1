// train, as a user calls it: a small model on a small text.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cli/program.h"
#include "io/folder_lock.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Train : public ::testing::Test {
 protected:
  Train() {
    std::string text;
    for (int i = 0; i < 80; ++i) {
      text += "Line " + std::to_string(i * i) + " of a text.\n<|endoftext|>\n";
    }
    write_file(folder_ / "text.txt", text);
    write_file(folder_ / "valid.txt", text.substr(100, 1000));
    write_file(folder_ / "tokenizer.json", byte_tokenizer_json());
    write_config(257);
  }
  void write_config(int vocab) const {
    json config{{"d_model", 32}, {"d_intermediate", 128}, {"n_layer", 2}, {"vocab_size", vocab}};
    config["ssm_cfg"] = {{"layer", "Mamba3"}, {"d_state", 16}, {"headdim", 16}};
    write_file(folder_ / "config.json", config.dump());
  }
  std::vector<std::string> fresh(const std::string& output,
                                 const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments{"train",
                                       "--config",
                                       folder_ / "config.json",
                                       "--tokenizer",
                                       folder_ / "tokenizer.json",
                                       "--data",
                                       folder_ / "text.txt",
                                       "--batch",
                                       "2",
                                       "--length",
                                       "16",
                                       "--steps",
                                       "12",
                                       "-s",
                                       "3",
                                       "-o",
                                       folder_ / output};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  TestFolder folder_;
};

TEST_F(Train, WritesAModelThatScoresAsItWasEvaluated) {
  const Outcome made = run_mamba3(fresh("run", {"--valid", folder_ / "valid.txt", "--eval-blocks",
                                                "9", "--save-every", "5", "--json"}));
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(made.json()["steps"], 12);
  EXPECT_LT(made.json()["loss"], 5.4);
  const Outcome scored =
      run_mamba3({"score", "-m", folder_ / "run", "--text", folder_ / "valid.txt", "--block", "16",
                  "--blocks", "9", "--separator", "<|endoftext|>", "--json"});
  ASSERT_EQ(scored.code, 0) << scored.err;
  // The training softmax has the rows that pad the vocabulary as well, scores have not.
  EXPECT_NEAR(scored.json()["nats_per_token"].get<double>(), made.json()["held_out"].get<double>(),
              0.05);
  EXPECT_EQ(run_mamba3({"generate", "-m", folder_ / "run", "-p", "Line", "-n", "4"}).code, 0);
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step-10"));
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step-12"));
  EXPECT_FALSE(fs::exists(folder_ / "run/checkpoints/step-5"));
  const std::string report = read_file(folder_ / "run/report.html");
  EXPECT_NE(report.find("<dt>data</dt><dd>text.txt; held out: valid.txt</dd>"), std::string::npos);
  fs::remove(folder_ / "run/report.html");
  EXPECT_EQ(run_mamba3({"train", "--report", folder_ / "run"}).code, 0);
  EXPECT_TRUE(read_file(folder_ / "run/report.html") == report);
  expect_error(run_mamba3({"train", "--report", folder_.path()}), 1, "has no metrics.jsonl");
  expect_error(run_mamba3(fresh("run")), 1, "holds a model already");
}

TEST_F(Train, ContinuesBitForBitAndWithAnotherCache) {
  ASSERT_EQ(run_mamba3(fresh("whole", {"--cache", folder_ / "new/cache"})).code, 0);
  ASSERT_EQ(run_mamba3(fresh("cut", {"--save-every", "6"})).code, 0);
  fs::remove_all(folder_ / "cut/checkpoints/step-12");
  for (const auto& entry : fs::directory_iterator(folder_ / "cut")) {
    if (entry.path().extension() == ".cache") write_file(entry.path(), "damaged");
  }
  const Outcome rest = run_mamba3({"train", "--resume", folder_ / "cut"});
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_NE(rest.err.find("building it again"), std::string::npos) << rest.err;
  EXPECT_NE(rest.err.find("going on after step 6"), std::string::npos) << rest.err;
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    const std::string at = std::string("/checkpoints/step-12/") + file;
    EXPECT_TRUE(read_file(folder_ / "whole" + at) == read_file(folder_ / "cut" + at)) << file;
  }
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "cut", "--length", "8"}), 1,
               "--length 16");
  expect_error(
      run_mamba3({"train", "-q", "--resume", folder_ / "cut", "--data", folder_ / "valid.txt"}), 1,
      "not those that the training was made");
}

TEST_F(Train, CarriesStatesAndGoesOnWithThem) {
  ASSERT_EQ(run_mamba3(fresh("whole", {"--carry-states", "--valid", folder_ / "valid.txt"})).code,
            0);
  ASSERT_EQ(run_mamba3(fresh("cut", {"--carry-states", "--save-every", "6"})).code, 0);
  fs::remove_all(folder_ / "cut/checkpoints/step-12");
  const Outcome rest = run_mamba3({"train", "--resume", folder_ / "cut"});
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_NE(rest.err.find("carried states"), std::string::npos) << rest.err;
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "states.safetensors"}) {
    const std::string at = std::string("/checkpoints/step-12/") + file;
    EXPECT_TRUE(read_file(folder_ / "whole" + at) == read_file(folder_ / "cut" + at)) << file;
  }
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "cut", "--batch", "3"}), 1,
               "carries states in 2 lanes");
  // By the file that it left, and not in the middle of a training.
  EXPECT_NE(read_file(folder_ / "cut/run.yaml").find("carry-states: true"), std::string::npos);
  const Outcome again = run_mamba3(
      {"train", "--run", folder_ / "cut/run.yaml", "-o", folder_ / "again", "--save-every", "12"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(read_file(folder_ / "again/model.safetensors") ==
              read_file(folder_ / "whole/model.safetensors"));
  ASSERT_EQ(run_mamba3(fresh("other")).code, 0);
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "other", "--carry-states"}), 1,
               "was made without --carry-states");
  expect_error(run_mamba3(fresh("large", {"--carry-states", "--batch", "1000"})), 1,
               "at least one for each of 1000 lanes");
  expect_error(run_mamba3({"train", "--task", "parity", "--carry-states", "-o", folder_ / "t"}), 2,
               "--carry-states is given beside --task");
}

TEST_F(Train, GoesOnWithFilesWhoseNamesAreNoUtf8) {
  const std::string text = folder_ / "text \xff\xe9.txt", valid = folder_ / "valid \xc3.txt";
  fs::copy_file(folder_ / "text.txt", text);
  fs::rename(folder_ / "valid.txt", valid);
  const Outcome made = run_mamba3(
      fresh("run", {"--data", text, "--valid", valid, "--steps", "4", "--eval-blocks", "2"}));
  ASSERT_EQ(made.code, 0) << made.err;
  const Outcome more = run_mamba3({"train", "--resume", folder_ / "run", "--steps", "6"});
  EXPECT_EQ(more.code, 0) << more.err;
}

TEST_F(Train, OneThatHasEndedIsWholeElsewhere) {
  ASSERT_EQ(run_mamba3(fresh("run")).code, 0);
  const Outcome there =
      run_mamba3({"train", "--resume", folder_ / "run", "-o", folder_ / "there", "--json"});
  ASSERT_EQ(there.code, 0) << there.err;
  EXPECT_EQ(there.err.find("nan"), std::string::npos) << there.err;
  for (const char* file : {"/model.safetensors", "/checkpoints/step-12/optimizer.safetensors"}) {
    EXPECT_TRUE(read_file(folder_ / "run" + file) == read_file(folder_ / "there" + file)) << file;
  }
  EXPECT_EQ(run_mamba3({"train", "--resume", folder_ / "there", "--steps", "13"}).code, 0);
}

TEST_F(Train, OneThatHasEndedSaysSoAndAddsNothing) {
  const Outcome made = run_mamba3(fresh("run", {"--valid", folder_ / "valid.txt", "--json"}));
  ASSERT_EQ(made.code, 0) << made.err;
  const std::string metrics = read_file(folder_ / "run/metrics.jsonl");
  const Outcome again = run_mamba3({"train", "--resume", folder_ / "run", "--json"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("the training of 12 steps has ended"), std::string::npos) << again.err;
  EXPECT_EQ(again.json()["held_out"], made.json()["held_out"]);
  EXPECT_TRUE(read_file(folder_ / "run/metrics.jsonl") == metrics);
}

// Even where no checkpoint is written any more.
TEST_F(Train, WhatAKilledOneLeftIsRemovedAtTheNextStart) {
  ASSERT_EQ(run_mamba3(fresh("run")).code, 0);
  const std::string left[] = {folder_ / "run/report.html.2147483647-3.tmp",
                              folder_ / "run/tokens-1.cache.2147483647-0.tmp"};
  for (const std::string& path : left) write_file(path, "half");
  fs::create_directory(folder_ / "run/checkpoints/step-3.tmp");
  ASSERT_EQ(run_mamba3({"train", "--resume", folder_ / "run"}).code, 0);
  for (const std::string& path : left) EXPECT_FALSE(fs::exists(path)) << path;
  EXPECT_FALSE(fs::exists(folder_ / "run/checkpoints/step-3.tmp"));
}

TEST_F(Train, StepsAndWarmUpOfOneThatGoesOn) {
  ASSERT_EQ(run_mamba3(fresh("run", {"--warmup", "10", "--save-every", "4", "--keep", "9"})).code,
            0);
  for (const char* later : {"8", "12"}) {
    fs::remove_all(folder_ / "run/checkpoints/step-" + std::string(later));
  }
  const std::vector<std::string> resume{"train", "--resume", folder_ / "run", "--steps"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), resume.begin(), resume.end());
    return run_mamba3(more);
  };
  expect_error(with({"6", "-q"}), 1, "--steps 6 ends the training within its warm-up of 10 steps");
  for (const char* steps : {"2", "4"}) {  // no step is left to warm up
    const Outcome ended = with({steps});
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_NE(ended.err.find("steps has ended, after step 4"), std::string::npos) << ended.err;
  }
  EXPECT_EQ(with({"6", "--warmup", "5"}).code, 0);
}

TEST_F(Train, WhatIsRefusedChangesNothing) {
  ASSERT_EQ(run_mamba3(fresh("run", {"--save-every", "6"})).code, 0);
  write_file(folder_ / "run/checkpoints/step-12/model.safetensors", "damaged");
  std::string other = byte_tokenizer_json();
  write_file(folder_ / "other.json", other + "\n");
  const std::vector<std::string> resume{"train", "-q", "--resume", folder_ / "run"};
  const auto refused = [&](std::vector<std::string> more, int code, const std::string& reason) {
    more.insert(more.begin(), resume.begin(), resume.end());
    const Outcome outcome = run_mamba3(more);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_NE(outcome.err.find(reason), std::string::npos) << outcome.err;
  };
  refused({"--tokenizer", folder_ / "other.json"}, 1, "not those that the training was made");
  refused({"--width", "64"}, 1, "has --width 32, --layers 2, --head-dim 16, --mlp 128");
  refused({"--rope", "none"}, 1, "--rope data-dependent");
  refused({"--a-activation", "softplus"}, 1, "--a-activation heavy-tail");
  refused({"--task", "parity"}, 2, "a training on texts");
  refused({"--data", ""}, 2, "found an empty name");
  EXPECT_TRUE(read_file(folder_ / "run/tokenizer.json") == byte_tokenizer_json());
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step-12"));
  EXPECT_EQ(run_mamba3({"train", "--resume", folder_ / "run", "--width", "32"}).code, 0);
}

TEST_F(Train, BeginsWithAnotherModel) {
  ASSERT_EQ(run_mamba3(fresh("first")).code, 0);
  const Outcome tuned =
      run_mamba3({"train", "--init-from", folder_ / "first", "--data", folder_ / "valid.txt", "-o",
                  folder_ / "tuned", "--steps", "3", "--batch", "2", "--length", "16", "--json"});
  ASSERT_EQ(tuned.code, 0) << tuned.err;
  EXPECT_LT(tuned.json()["loss"], 5.2);
  EXPECT_TRUE(fs::exists(folder_ / "tuned/tokenizer.json"));

  const fs::path weights = folder_ / "first/model.safetensors";
  std::string bytes = read_file(weights);
  bytes.replace(bytes.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));  // a NaN
  write_file(weights, bytes);
  expect_error(run_mamba3({"train", "-q", "--init-from", folder_ / "first", "--data",
                           folder_ / "valid.txt", "-o", folder_ / "never"}),
               1, "NaN or infinity, the first is");
  EXPECT_FALSE(fs::exists(folder_ / "never"));
}

TEST_F(Train, AnInterruptedOneIsSaved) {
  RunOptions options;
  options.signal_after_ms = 700;  // of silence
  const Outcome cut =
      run_mamba3(fresh("run", {"--steps", "10000000", "--save-every", "10000000"}), options);
  EXPECT_EQ(cut.code, 130) << cut.err;
  EXPECT_NE(cut.err.find("saved"), std::string::npos) << cut.err;
  const Outcome more =
      run_mamba3({"train", "--resume", folder_ / "run", "--steps", "2", "--warmup", "1", "--json"});
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_NE(more.err.find("steps 2, was 10000000"), std::string::npos) << more.err;
  EXPECT_GT(more.json()["steps"], 2);
  EXPECT_TRUE(more.json()["loss"].is_null());
}

// As on a full disk. Room for the weights, not for the moments of a checkpoint.
TEST_F(Train, AnInterruptedOneThatCannotBeSavedIsAnError) {
  ASSERT_EQ(run_mamba3(fresh("run")).code, 0);
  const auto room = fs::file_size(folder_ / "run/model.safetensors");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{room, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  RunOptions options;
  options.signal_after_ms = 2000;  // a step must have been taken, on slow machines too
  const Outcome cut =
      run_mamba3({"train", "-q", "--resume", folder_ / "run", "--steps", "10000000"}, options);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  expect_error(cut, 1, "could not be saved and are lost: cannot write");
  EXPECT_NE(cut.err.find("error: steps 13 to "), std::string::npos) << cut.err;
  EXPECT_NE(cut.err.find("the last good checkpoint is "), std::string::npos) << cut.err;
  EXPECT_NE(cut.err.find("run/checkpoints/step-12"), std::string::npos) << cut.err;
}

TEST_F(Train, HoldsOutAShareOfTheDocuments) {
  const Outcome whole = run_mamba3(fresh("run", {"--valid-split", "0.1", "--json"}));
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_GT(whole.json()["held_out"], 0);
  const auto record = json::parse(read_file(folder_ / "run/checkpoints/step-12/training.json"));
  EXPECT_EQ(record["data"]["valid_split"], 0.1);
  const std::vector<std::string> resume{"train", "-q", "--resume", folder_ / "run"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), resume.begin(), resume.end());
    return run_mamba3(more);
  };
  EXPECT_EQ(with({"--steps", "13"}).code, 0);
  expect_error(with({"--valid-split", "8"}), 1, "what of them is held out");
  expect_error(with({"--valid-split", "0"}), 1, "what of them is held out");
  expect_error(with({"--valid", folder_ / "valid.txt"}), 2, "by --valid and by --valid-split");
  expect_error(run_mamba3(fresh("run2", {"--valid-split", "1.5"})), 2, "--valid-split is 1.5");
  expect_error(run_mamba3(fresh("run2", {"-q", "--valid-split", "80"})), 1, "80 of 80 documents");
}

TEST_F(Train, AFolderHasOneTrainingAtATime) {
  ASSERT_EQ(run_mamba3(fresh("run")).code, 0);
  const FolderLock lock(folder_ / "run");
  const std::string holder = "written by process " + std::to_string(::getpid());
  expect_error(run_mamba3({"train", "--resume", folder_ / "run"}), 1, holder);
  fs::create_directory(folder_ / "new");
  const FolderLock second(folder_ / "new");
  expect_error(run_mamba3(fresh("new", {"-q"})), 1, holder);
}

TEST_F(Train, RefusesWhatDoesNotFitIntoMemory) {
  const Outcome large = run_mamba3(
      fresh("run", {"--batch", "10000000", "--length", "100", "--accumulate", "1000000000"}));
  expect_error(large, 3, "--accumulate ");
  EXPECT_NE(large.err.find(" fits: choose that or less"), std::string::npos) << large.err;
  expect_error(run_mamba3(fresh("run", {"--length", "1000000000"})), 3, "not even one window");
  const Outcome many =
      run_mamba3(fresh("run", {"-q", "--batch", "1000000000", "--length", "99999"}));
  expect_error(many, 3, "a step of 1000000000 windows");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(Train, RefusesWhatCannotBeTrained) {
  expect_error(run_mamba3({"train"}), 2, "--resume are given");
  expect_error(run_mamba3({"train", "--config", "c", "--resume", "r"}), 2, "exactly one");
  expect_error(run_mamba3({"train", "--config", "c", "-o", "o"}), 2, "--data is missing");
  expect_error(run_mamba3(fresh("run", {"--stepz", "3"})), 2, "--stepz");
  expect_error(run_mamba3(fresh("run", {"--schedule", "square"})), 2, "wsd");
  expect_error(run_mamba3(fresh("run", {"--warmup", "13"})), 1, "warm-up");
  expect_error(run_mamba3(fresh("run", {"--eps", "0"})), 2, "found '0'; expected a number above 0");
  expect_error(run_mamba3(fresh("run", {"--eps", "-1e-8"})), 2, "found '-1e-8'");
  expect_error(run_mamba3(fresh("run", {"--data", folder_ / "missing"})), 1, "missing");
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "nothing"}), 1,
               "holds no checkpoint");
  write_file(folder_ / "empty.txt", "");
  auto empty = fresh("run");
  empty[6] = folder_ / "empty.txt";
  expect_error(run_mamba3(empty), 1, "at least one window");
  write_config(300);
  expect_error(run_mamba3(fresh("run2")), 1, "a vocabulary of 300");
  EXPECT_FALSE(fs::exists(folder_ / "run2"));
}

TEST_F(Train, AFileThatMayNotGrowIsAnError) {
  const auto arguments = fresh("run", {"-q"});
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Outcome outcome = run_mamba3(arguments);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  expect_error(outcome, 1, "File too large");
}

TEST_F(Train, AGpuThatIsNotThereIsRefused) {
  expect_error(run_mamba3(fresh("run", {"--device", "cuda:99"})), 3, "GPU");
}

}  // namespace
}  // namespace mamba3
