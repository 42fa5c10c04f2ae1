// train --task, as a user calls it: small models on generated sequences, alone and in sweeps.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "cli/program.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class TrainTask : public ::testing::Test {
 protected:
  TrainTask() {
    json config{{"d_model", 16}, {"n_layer", 1}};
    config["ssm_cfg"] = {{"layer", "Mamba3"}, {"d_state", 16}, {"headdim", 16}};
    write_file(folder_ / "config.json", config.dump());
  }
  std::vector<std::string> fresh(const std::string& task, const std::string& output,
                                 const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments{"train",
                                       "--task",
                                       task,
                                       "--config",
                                       folder_ / "config.json",
                                       "--batch",
                                       "8",
                                       "--stages",
                                       "8,16",
                                       "--stage-steps",
                                       "6",
                                       "--eval-length",
                                       "20",
                                       "--eval-blocks",
                                       "32",
                                       "-o",
                                       folder_ / output};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // The config.json that a training leaves.
  json config_after(std::vector<std::string> arguments, const std::string& output) const {
    arguments.insert(arguments.begin(), {"train", "-q", "-o", folder_ / output});
    const Outcome made = run_mamba3(arguments);
    EXPECT_EQ(made.code, 0) << made.err;
    return json::parse(read_file(folder_ / (output + "/config.json")));
  }
  // That of a new model, after two steps.
  json new_model(const std::string& task, const std::string& output,
                 std::vector<std::string> more) const {
    more.insert(more.end(), {"--task", task, "--batch", "4", "--stages", "4", "--stage-steps", "2",
                             "--eval-length", "4", "--eval-blocks", "4"});
    return config_after(std::move(more), output);
  }
  TestFolder folder_;
};

TEST_F(TrainTask, WritesAModelThatAnswers) {
  const Outcome made =
      run_mamba3(fresh("modular-arithmetic-brackets", "run", {"-s", "3", "--json"}));
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(made.json()["steps"], 12);
  EXPECT_EQ(made.json()["task"], "modular-arithmetic-brackets");
  EXPECT_LE(made.json()["accuracy"], 100);
  const Outcome asked = run_mamba3({"generate", "-m", folder_ / "run", "-p", "((-2)*(1+3))=", "-n",
                                    "1", "--temp", "0", "--json"});
  ASSERT_EQ(asked.code, 0) << asked.err;
  EXPECT_EQ(asked.json()["prompt_ids"], (json{9, 9, 6, 2, 10, 7, 9, 1, 5, 3, 10, 10, 8}));
}

// A tied head of two symbols shrinks with their embeddings until nothing is learnt.
TEST_F(TrainTask, ANewModelHasAHeadOfItsOwn) {
  const json config = new_model("parity", "run", {"--width", "8"});
  EXPECT_EQ(config["tie_embeddings"], false);
  EXPECT_EQ(config["ssm_cfg"]["a_activation"], "softplus");
}

TEST_F(TrainTask, OnlyModelsOfBracketsHaveAnMlpUnlessAskedFor) {
  const auto hidden = [&](const std::string& output, const std::string& task,
                          std::vector<std::string> more) {
    more.insert(more.end(), {"--width", "8", "--layers", "1"});
    return new_model(task, output, more)["d_intermediate"];
  };
  EXPECT_EQ(hidden("brackets", "modular-arithmetic-brackets", {}), 128);
  EXPECT_EQ(hidden("arithmetic", "modular-arithmetic", {}), 0);
  EXPECT_EQ(hidden("with", "modular-arithmetic", {"--mlp", "128"}), 128);
  EXPECT_EQ(hidden("without", "modular-arithmetic-brackets", {"--mlp", "0"}), 0);
  EXPECT_EQ(config_after({"--run", folder_ / "without/run.yaml"}, "again")["d_intermediate"], 0);
  expect_error(run_mamba3({"train", "--task", "parity", "--mlp", "32", "-o", folder_ / "odd"}), 1,
               "--mlp is 32; expected a multiple of 128");
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "without", "--mlp", "8"}), 1,
               "--mlp 0");
}

TEST_F(TrainTask, HeadsHaveTheColumnsAskedFor) {
  const auto columns = [&](const std::string& output, const std::vector<std::string>& more) {
    return new_model("parity", output, more)["ssm_cfg"]["headdim"];
  };
  EXPECT_EQ(columns("usual", {"--width", "32"}), 32);
  EXPECT_EQ(columns("narrow", {"--width", "8"}), 16);  // all that it has
  EXPECT_EQ(columns("asked", {"--width", "32", "--head-dim", "64"}), 64);
  expect_error(run_mamba3({"train", "-q", "--resume", folder_ / "asked", "--head-dim", "32"}), 1,
               "--layers 1, --head-dim 64");
}

TEST_F(TrainTask, TheRateFallsOnceTheLongestSequencesHaveCome) {
  // The steps of 40 that have the peak: behind the warm-up, before the rate falls.
  const auto at_peak = [&](const std::string& stages) {
    const std::string output = folder_ / stages;
    const Outcome made = run_mamba3({"train", "--task", "parity", "--width", "8", "--batch", "4",
                                     "--stages", stages, "--stage-steps", "10", "--rate", "1e-3",
                                     "--eval-length", "4", "--eval-blocks", "4", "-o", output});
    EXPECT_EQ(made.code, 0) << made.err;
    std::istringstream lines(read_file(output + "/metrics.jsonl"));
    std::vector<double> rates;
    for (std::string line; std::getline(lines, line);) {
      const json step = json::parse(line);
      if (step.contains("rate")) rates.push_back(step["rate"]);
    }
    EXPECT_EQ(rates.size(), 40);
    EXPECT_LT(rates.back(), 0.2e-3);
    const auto peak = [](double rate) { return std::abs(rate - 1e-3) < 1e-12; };
    const auto first = std::ranges::find_if(rates, peak);
    const auto last = std::find_if_not(first, rates.end(), peak);
    return std::pair(first - rates.begin(), last - rates.begin());
  };
  EXPECT_EQ(at_peak("4,5,6,7"), std::pair(3L, 31L));
  EXPECT_EQ(at_peak("4,7,7,7"), std::pair(3L, 25L));  // from 0.6 of the steps, no sooner
}

TEST_F(TrainTask, TasksHaveStagesAndARateOfTheirOwn) {
  for (const auto& [task, steps] :
       {std::pair("parity", 4), {"modular-arithmetic", 8}, {"modular-arithmetic-brackets", 4}}) {
    const Outcome made = run_mamba3({"train", "--task", task, "--config", folder_ / "config.json",
                                     "--batch", "1", "--stage-steps", "1", "--eval-length", "3",
                                     "--eval-blocks", "1", "--json", "-o", folder_ / task});
    ASSERT_EQ(made.code, 0) << made.err;
    EXPECT_EQ(made.json()["steps"], steps) << task;
    const std::string rate = std::string(task) == "parity" ? "rate: 0.003\n" : "rate: 0.002\n";
    EXPECT_NE(read_file(folder_ / (std::string(task) + "/run.yaml")).find(rate), std::string::npos)
        << task;
  }
}

TEST_F(TrainTask, BracketsHaveNoMultiplicationUnlessAskedFor) {
  const std::pair<const char*, bool> usual[] = {{"modular-arithmetic", true},
                                                {"modular-arithmetic-brackets", false}};
  for (const auto& [task, multiplies] : usual) {
    for (const char* flag : {"", "--multiplication", "--no-multiplication"}) {
      const std::string run = std::string(task) + flag;
      std::vector<std::string> more{"--rates", "1e-3", "--json"};
      if (*flag != '\0') more.emplace_back(flag);
      const Outcome made = run_mamba3(fresh(task, run, more));
      ASSERT_EQ(made.code, 0) << made.err;
      EXPECT_EQ(made.json()["training"]["multiplication"],
                *flag == '\0' ? multiplies : std::string(flag) == "--multiplication");
    }
  }
}

// Of 12 steps one: what texts have, a fifth, would be two.
TEST_F(TrainTask, WarmsUpForATenthOfItsSteps) {
  ASSERT_EQ(run_mamba3(fresh("parity", "run")).code, 0);
  EXPECT_NE(read_file(folder_ / "run/run.yaml").find("\nwarmup: 1\n"), std::string::npos);
}

TEST_F(TrainTask, ContinuesBitForBitOverTheStages) {
  for (const char* rope : {"data-dependent", "standard", "none"}) {
    const std::string whole = std::string(rope) + "-whole", cut = std::string(rope) + "-cut";
    const std::vector<std::string> more{"-s", "3", "--rope", rope, "--save-every", "4"};
    ASSERT_EQ(run_mamba3(fresh("parity", whole, more)).code, 0);
    auto kept = fresh("parity", cut, more);
    kept.insert(kept.end(), {"--keep", "3"});
    ASSERT_EQ(run_mamba3(kept).code, 0);
    for (const char* later : {"8", "12"}) {
      fs::remove_all(fs::path(folder_ / cut) / "checkpoints" / (std::string("step-") + later));
    }
    const Outcome rest = run_mamba3({"train", "--resume", folder_ / cut});
    ASSERT_EQ(rest.code, 0) << rest.err;
    EXPECT_NE(rest.err.find("going on after step 4"), std::string::npos) << rest.err;
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      const std::string at = std::string("/checkpoints/step-12/") + file;
      EXPECT_TRUE(read_file(folder_ / whole + at) == read_file(folder_ / cut + at)) << rope;
    }
    expect_error(run_mamba3({"train", "-q", "--resume", folder_ / cut, "--stages", "8,17"}), 1,
                 "they decide what its position means");
  }
}

TEST_F(TrainTask, ASweepTrainsEveryCombinationAndGoesOn) {
  const std::vector<std::string> lists{"--rates", "1e-3,1e-2",           "--seeds", "0,1",
                                       "--ropes", "none,data-dependent", "--json"};
  auto wanted = fresh("parity", "sweep", lists);
  const Outcome made = run_mamba3(wanted);
  ASSERT_EQ(made.code, 0) << made.err;
  const auto lines = made.json_lines();
  ASSERT_EQ(lines.size(), 8u);
  EXPECT_EQ(lines[0]["name"], "state-tracking/parity/rope=none/width=16/rate=0.001/seed=0");
  EXPECT_EQ(lines[7]["name"],
            "state-tracking/parity/rope=data-dependent/width=16/rate=0.01/seed=1");
  expect_error(run_mamba3(wanted), 1, "is not empty");

  // What has ended stays; what is missing is made, to the same result; and more is added.
  const std::string lost = "rope=none,width=16,rate=0.01,seed=1";
  fs::remove_all(fs::path(folder_ / "sweep") / lost);
  auto more = wanted;
  *std::ranges::find(more, "-o") = "--resume";
  *std::ranges::find(more, "1e-3,1e-2") = "1e-3,1e-2,2e-2";
  more.insert(more.end(), {"--out", folder_ / "rows.json"});
  const Outcome again = run_mamba3(more);
  ASSERT_EQ(again.code, 0) << again.err;
  ASSERT_EQ(again.json_lines().size(), 12u);
  json before = lines[3], after = again.json_lines()[3];
  before.erase("seconds"), after.erase("seconds");
  EXPECT_EQ(before, after);
  EXPECT_EQ(again.json_lines()[0], lines[0]);
  EXPECT_EQ(json::parse(read_file(folder_ / "rows.json"))["rows"].size(), 12u);
  EXPECT_EQ(read_file(fs::path(folder_ / "sweep") / "results.jsonl"), again.out);

  // Of fewer trainings the others' results stay.
  auto fewer = more;
  *std::ranges::find(fewer, "1e-3,1e-2,2e-2") = "1e-3";
  ASSERT_EQ(run_mamba3(fewer).code, 0);
  std::istringstream kept(read_file(fs::path(folder_ / "sweep") / "results.jsonl"));
  EXPECT_EQ(std::count(std::istreambuf_iterator<char>(kept), {}, '\n'), 12);

  const std::vector<std::vector<std::string>> other = {{"--layers", "2"},
                                                       {"--decay", "0.9"},
                                                       {"--eval-blocks", "16"},
                                                       {"--a-activation", "softplus"}};
  for (const auto& option : other) {
    auto changed = more;
    changed.insert(changed.end(), option.begin(), option.end());
    expect_error(run_mamba3(changed), 1, "of another training");
  }
  more[6] = "9";  // sequences a step
  ASSERT_EQ(more[5], "--batch");
  expect_error(run_mamba3(more), 1, "of another training");
}

// With the last stage's sequences: as one training alone does.
TEST_F(TrainTask, MoreStepsLetEndedTrainingsGoOn) {
  const auto wanted = fresh("parity", "sweep", {"--seeds", "0,1", "--json"});
  ASSERT_EQ(run_mamba3(wanted).code, 0);
  auto more = wanted;
  *std::ranges::find(more, "-o") = "--resume";
  more.insert(more.end(), {"--steps", "15"});
  const Outcome longer = run_mamba3(more);
  ASSERT_EQ(longer.code, 0) << longer.err;
  for (const json& line : longer.json_lines()) EXPECT_EQ(line["steps"], 15);
  ASSERT_EQ(run_mamba3(fresh("parity", "one", {"-s", "1"})).code, 0);
  ASSERT_EQ(run_mamba3({"train", "--resume", folder_ / "one", "--steps", "15"}).code, 0);
  const std::string cell = "rope=data-dependent,width=16,rate=0.003,seed=1/model.safetensors";
  EXPECT_TRUE(read_file(fs::path(folder_ / "sweep") / cell) ==
              read_file(fs::path(folder_ / "one") / "model.safetensors"));
  EXPECT_EQ(run_mamba3(more).out, longer.out);  // nothing is left to do
}

TEST_F(TrainTask, ADamagedResultIsMadeAgain) {
  const auto wanted = fresh("parity", "sweep", {"--seeds", "0,1", "--json"});
  const Outcome made = run_mamba3(wanted);
  ASSERT_EQ(made.code, 0) << made.err;
  auto again = wanted;
  *std::ranges::find(again, "-o") = "--resume";
  const fs::path cell =
      fs::path(folder_ / "sweep") / "rope=data-dependent,width=16,rate=0.003,seed=1";
  const fs::path result = cell / "result.json";
  const std::string good = read_file(result);
  std::string without = good;
  without.replace(without.find("accuracy"), 8, "akkuracy");
  for (const std::string& bad : {std::string(), good.substr(0, good.size() / 2), without,
                                 std::string("[]"), std::string(3000000, ' ')}) {
    write_file(result, bad);
    const Outcome outcome = run_mamba3(again);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("warning: \"" + result.string()), std::string::npos) << outcome.err;
    json before = made.json_lines()[1], after = outcome.json_lines()[1];
    before.erase("seconds"), after.erase("seconds");
    EXPECT_EQ(before, after);
    EXPECT_EQ(outcome.json_lines()[0], made.json_lines()[0]);
    EXPECT_EQ(json::parse(read_file(result)), outcome.json_lines()[1]);
  }
  // Where the training cannot go on, the file stays.
  write_file(result, "damaged");
  fs::remove_all(cell / "checkpoints");
  write_file(cell / "checkpoints", "");
  again.push_back("-q");
  expect_error(run_mamba3(again), 1, "holds a model already");
  EXPECT_EQ(read_file(result), "damaged");
}

// As a training alone.
TEST_F(TrainTask, ACellIsATraining) {
  ASSERT_EQ(run_mamba3(fresh("parity", "sweep", {"--seeds", "5,6", "--jobs", "2"})).code, 0);
  ASSERT_EQ(run_mamba3(fresh("parity", "one", {"-s", "6"})).code, 0);
  const std::string cell = "rope=data-dependent,width=16,rate=0.003,seed=6/model.safetensors";
  EXPECT_TRUE(read_file(fs::path(folder_ / "sweep") / cell) ==
              read_file(fs::path(folder_ / "one") / "model.safetensors"));
  const fs::path file = (fs::path(folder_ / "sweep") / cell).parent_path() / "run.yaml";
  ASSERT_EQ(run_mamba3({"train", "--run", file, "-o", folder_ / "again"}).code, 0);
  EXPECT_TRUE(read_file(fs::path(folder_ / "sweep") / cell) ==
              read_file(fs::path(folder_ / "again") / "model.safetensors"));
}

TEST_F(TrainTask, ASweepPassesWarningsOn) {
  auto wanted = fresh("parity", "sweep", {"--seeds", "0,1", "--save-every", "4", "--keep", "3"});
  ASSERT_EQ(run_mamba3(wanted).code, 0);
  const fs::path cell =
      fs::path(folder_ / "sweep") / "rope=data-dependent,width=16,rate=0.003,seed=1";
  fs::remove(cell / "result.json");
  write_file(cell / "checkpoints/step-12/model.safetensors", "damaged");
  *std::ranges::find(wanted, "-o") = "--resume";
  const Outcome again = run_mamba3(wanted);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_NE(again.err.find("warning: rope=data-dependent/width=16/rate=0.003/seed=1: "),
            std::string::npos)
      << again.err;
}

TEST_F(TrainTask, ADivergedTrainingIsAResult) {
  const Outcome made =
      run_mamba3(fresh("parity", "sweep", {"--rates", "1e-3,1000", "--warmup", "0"}));
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_NE(made.err.find("rate=1000/seed=0: diverged"), std::string::npos) << made.err;
  EXPECT_NE(made.out.find("diverged"), std::string::npos);
  EXPECT_EQ(read_file(fs::path(folder_ / "sweep") / "results.jsonl").find("nan"),
            std::string::npos);
}

TEST_F(TrainTask, AnInterruptedSweepGoesOn) {
  RunOptions options;
  options.signal_after_ms = 700;  // of silence
  auto endless = fresh("parity", "sweep", {"--seeds", "0,1,2", "--jobs", "2"});
  *std::ranges::find(endless, "6") = "1000000";
  const Outcome cut = run_mamba3(endless, options);
  EXPECT_EQ(cut.code, 130) << cut.err;
  EXPECT_TRUE(fs::exists(fs::path(folder_ / "sweep") /
                         "rope=data-dependent,width=16,rate=0.003,seed=1/checkpoints"));
  EXPECT_EQ(read_file(fs::path(folder_ / "sweep") / "results.jsonl"), "");
}

TEST_F(TrainTask, RefusesWhatContradicts) {
  expect_error(run_mamba3(fresh("modular-aritmetic", "run")), 2, "perhaps modular-arithmetic");
  expect_error(run_mamba3(fresh("parity", "run", {"--rope", "standart"})), 2, "perhaps standard");
  expect_error(run_mamba3(fresh("parity", "run", {"--data", "x"})), 2, "beside --task");
  const std::vector<std::vector<std::string>> of_texts = {{"--valid", "x"},
                                                          {"--valid-split", "0.1"},
                                                          {"--separator", "x"},
                                                          {"--json-key", "x"},
                                                          {"--cache", "x"}};
  for (const auto& option : of_texts) {
    expect_error(run_mamba3(fresh("parity", "run", option)), 2, option[0]);
    EXPECT_FALSE(fs::exists(folder_ / "run"));
  }
  expect_error(run_mamba3(fresh("parity", "run", {"--steps", "5"})), 2, "--stage-steps");
  expect_error(run_mamba3(fresh("parity", "run", {"--stages", "8,2"})), 2, "from 3");
  expect_error(run_mamba3(fresh("parity", "run", {"--min-length", "9"})), 1, "expected 9 to");
  expect_error(run_mamba3(fresh("parity", "run", {"--rate", "1", "--rates", "1,2"})), 2,
               "--rates are given");
  expect_error(run_mamba3(fresh("parity", "run", {"--ropes", "none,nome"})), 2, "perhaps none");
  expect_error(run_mamba3(fresh("parity", "run", {"--rates", "1e-3,0.001"})), 2,
               "two trainings rope=data-dependent/width=16/rate=0.001/seed=0");
  expect_error(run_mamba3({"train", "--task", "parity"}), 2, "-o is missing");
  expect_error(run_mamba3({"train", "--rates", "1,2", "--config", "c"}), 2, "without --task");
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

}  // namespace
}  // namespace mamba3
