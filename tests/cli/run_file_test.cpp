// train --run: options from a file, and the file that a training leaves.
#include "io/run_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "cli/program.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;

class RunFileOfTrain : public ::testing::Test {
 protected:
  RunFileOfTrain() {
    std::string text;
    for (int i = 0; i < 40; ++i) text += "Line " + std::to_string(i * i) + "\n<|endoftext|>\n";
    write_file(folder_ / "text.txt", text);
    write_file(folder_ / "tokenizer.json", byte_tokenizer_json());
    nlohmann::json config{
        {"d_model", 32}, {"d_intermediate", 0}, {"n_layer", 1}, {"vocab_size", 257}};
    config["ssm_cfg"] = {{"layer", "Mamba3"}, {"d_state", 16}, {"headdim", 16}};
    write_file(folder_ / "config.json", config.dump());
  }

  // The options of a training of 4 steps; of those in `more` the last counts.
  nlohmann::ordered_json options(const nlohmann::ordered_json& more = {}) const {
    nlohmann::ordered_json all{{"config", folder_ / "config.json"},
                               {"tokenizer", folder_ / "tokenizer.json"},
                               {"data", {folder_ / "text.txt"}},
                               {"valid_split", 0.2},
                               {"batch", 2},
                               {"length", 8},
                               {"steps", 4},
                               {"rate", 0.01},
                               {"seed", 3},
                               {"output", folder_ / "run"}};
    if (!more.is_null()) all.update(more);
    return all;
  }
  std::string put(const nlohmann::ordered_json& options, const std::string& name = "in.json") {
    write_file(folder_ / name, options.dump(1));
    return folder_ / name;
  }
  std::map<std::string, std::vector<std::string>> written(const std::string& run) const {
    std::map<std::string, std::vector<std::string>> out;
    for (const RunFileEntry& entry : read_run_file(folder_ / (run + "/run.yaml"))) {
      out[entry.key] = entry.values;
    }
    return out;
  }
  TestFolder folder_;
};

TEST_F(RunFileOfTrain, IsLeftAndRunAgain) {
  const Outcome first = run_mamba3({"train", "--run", put(options()), "--json"});
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.json()["steps"], 4);
  const std::string text = read_file(folder_ / "run/run.yaml");
  EXPECT_EQ(text.find("# mamba3 "), 0u) << text;
  EXPECT_NE(text.find("mamba3 train --run "), std::string::npos) << text;
  const Outcome again =
      run_mamba3({"train", "--run", folder_ / "run/run.yaml", "-o", folder_ / "again"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(read_file(folder_ / "run/model.safetensors") ==
              read_file(folder_ / "again/model.safetensors"));
}

TEST_F(RunFileOfTrain, TheCommandLineAndTheEnvironmentWin) {
  RunOptions environment;
  environment.environment["MAMBA3_BATCH"] = "3";
  const Outcome made = run_mamba3({"train", "--run", put(options({{"clip", 0.5}})), "--steps", "5",
                                   "--valid", folder_ / "text.txt", "--json"},
                                  environment);
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(made.json()["tokens"], 5 * 3 * 8);
  auto values = written("run");
  EXPECT_EQ(values["steps"], std::vector<std::string>{"5"});
  EXPECT_EQ(values["batch"], std::vector<std::string>{"3"});
  EXPECT_EQ(values["clip"], std::vector<std::string>{"0.5"});
  EXPECT_EQ(values["valid"], std::vector<std::string>{folder_ / "text.txt"});
  EXPECT_FALSE(values.contains("valid-split"));
  const Outcome tuned = run_mamba3(
      {"train", "--run", put(options()), "--init-from", folder_ / "run", "-o", folder_ / "tuned"});
  EXPECT_EQ(tuned.code, 0) << tuned.err;
  EXPECT_FALSE(written("tuned").contains("config"));
}

TEST_F(RunFileOfTrain, ATrainingThatGoesOnKeepsWhereItBegan) {
  ASSERT_EQ(run_mamba3({"train", "--run", put(options())}).code, 0);
  const Outcome more =
      run_mamba3({"train", "--resume", folder_ / "run", "--steps", "6", "--eps", "1e-6"});
  ASSERT_EQ(more.code, 0) << more.err;
  EXPECT_NE(more.err.find("from here on with eps 1e-06, was 1e-08"), std::string::npos) << more.err;
  auto values = written("run");
  EXPECT_EQ(values["eps"], std::vector<std::string>{"1e-06"});
  EXPECT_EQ(values["config"], std::vector<std::string>{folder_ / "config.json"});
  EXPECT_EQ(values["steps"], std::vector<std::string>{"6"});
  EXPECT_EQ(values["seed"], std::vector<std::string>{"3"});
  EXPECT_FALSE(values.contains("resume"));
  EXPECT_EQ(run_mamba3({"train", "--run", folder_ / "run/run.yaml", "-o", folder_ / "again"}).code,
            0);
}

TEST_F(RunFileOfTrain, OfATaskIsRunAgain) {
  const Outcome first = run_mamba3({"train",
                                    "--task",
                                    "modular-arithmetic",
                                    "--no-multiplication",
                                    "--stages",
                                    "5,7",
                                    "--stage-steps",
                                    "2",
                                    "--width",
                                    "16",
                                    "--layers",
                                    "1",
                                    "--batch",
                                    "4",
                                    "--eval-blocks",
                                    "4",
                                    "-s",
                                    "1",
                                    "-o",
                                    folder_ / "run"});
  ASSERT_EQ(first.code, 0) << first.err;
  auto values = written("run");
  EXPECT_EQ(values["stages"], std::vector<std::string>{"5,7"});
  EXPECT_EQ(values["multiplication"], std::vector<std::string>{"false"});
  EXPECT_EQ(values["width"], std::vector<std::string>{"16"});
  EXPECT_FALSE(values.contains("steps"));
  ASSERT_EQ(run_mamba3({"train", "--resume", folder_ / "run"}).code, 0);
  const Outcome again =
      run_mamba3({"train", "--run", folder_ / "run/run.yaml", "-o", folder_ / "again"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_TRUE(read_file(folder_ / "run/model.safetensors") ==
              read_file(folder_ / "again/model.safetensors"));
}

TEST_F(RunFileOfTrain, AFlagMayBeGivenByItsNegativeName) {
  nlohmann::ordered_json task{{"task", "modular-arithmetic"},
                              {"config", folder_ / "config.json"},
                              {"stages", 5},
                              {"stage-steps", 1},
                              {"batch", 2},
                              {"eval-blocks", 2}};
  for (const auto& [name, value, multiplies] : {std::tuple{"no_multiplication", true, "false"},
                                                {"no-multiplication", false, "true"},
                                                {"multiplication", true, "true"},
                                                {"multiplication", false, "false"}}) {
    const std::string run = std::string(name) + multiplies;
    nlohmann::ordered_json options = task;
    options.update({{name, value}, {"output", folder_ / run}});
    const Outcome made = run_mamba3({"train", "--run", put(options)});
    ASSERT_EQ(made.code, 0) << made.err;
    EXPECT_EQ(written(run)["multiplication"], std::vector<std::string>{multiplies}) << name;
  }
  task.update({{"multiplication", true}, {"no-multiplication", true}, {"output", folder_ / "x"}});
  expect_error(run_mamba3({"train", "--run", put(task)}), 1, "by its other spelling");
}

TEST_F(RunFileOfTrain, NamesWhatIsWrongInIt) {
  const auto refuse = [&](const nlohmann::ordered_json& more, const std::string& reason) {
    expect_error(run_mamba3({"train", "--run", put(options(more)), "-o", folder_ / "none"}), 1,
                 reason);
    EXPECT_FALSE(fs::exists(folder_ / "none"));
  };
  refuse({{"stepz", 3}},
         "line 14: there is no option \"stepz\"; expected one that the help lists; "
         "perhaps steps");
  refuse({{"eval_evry", 3}}, "perhaps eval-every");
  refuse({{"carry_state", true}}, "perhaps carry-states");
  refuse({{"carry-states", 1}}, "\"carry-states\" has no truth value");
  refuse({{"learning_rate", 3}}, "expected one that the help lists\n");
  refuse({{"steps", "three"}}, "line 10: --steps: found 'three'; expected a whole number");
  refuse({{"steps", -1}}, "found '-1'");
  refuse({{"steps", 2.5}}, "found '2.5'");
  refuse({{"rate", true}}, "found 'true'; expected a number");
  refuse({{"schedule", "square"}}, "expected one of constant, wsd");
  refuse({{"steps", {1, 2}}}, "\"steps\" has a list of values");
  refuse({{"data", nlohmann::json::array()}}, "\"data\" has an empty list");
  refuse({{"strict", "perhaps"}}, "\"strict\" has no truth value");
  refuse({{"valid-split", 0.1}}, "\"valid-split\" has been given above");
  refuse({{"run", "other.yaml"}}, "no option \"run\"");
  refuse({{"batch", {{"size", 2}}}}, "\"batch\" holds other keys");
  expect_error(run_mamba3({"train", "--run", folder_ / "missing"}), 1, "missing");
}

}  // namespace
}  // namespace mamba3
