// The program with --device cuda, as a user runs it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cli/program.h"
#include "core/gpu.h"

namespace mamba3 {
namespace {

using nlohmann::json;

class CudaProgram : public testing::Test {
 protected:
  void SetUp() override {
    if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

Outcome run_on(const std::string& device, std::vector<std::string> arguments,
               const std::string& input = "") {
  arguments.insert(arguments.end(), {"-q", "--device", device});
  RunOptions options;
  options.input = input;
  return run_mamba3(arguments, options);
}

std::vector<json> answers(const std::string& model, const std::vector<json>& requests,
                          const std::string& batch, int code = 0) {
  std::string lines;
  for (const json& request : requests) lines += request.dump() + "\n";
  const Outcome outcome = run_on(
      "cuda",
      {"generate", "-m", model, "--requests", "-", "--batch", batch, "--ignore-eos", "-n", "12"},
      lines);
  EXPECT_EQ(outcome.code, code) << outcome.err;
  return outcome.json_lines();
}

std::vector<json> some_requests() {
  std::vector<json> out;
  for (int i = 0; i < 7; ++i) {
    json request{{"prompt", std::string(static_cast<std::size_t>(1 + 23 * i), 'a')},
                 {"max_tokens", 3 + 5 * i},
                 {"seed", i},
                 {"temperature", i % 3 == 0 ? 0.0 : 0.7 * i}};
    if (i == 4) request["repeat_penalty"] = 1.5;
    out.push_back(request);
  }
  return out;
}

TEST_F(CudaProgram, GeneratesAndScoresAsOnACpu) {
  for (const char* kind : {"siso", "mimo"}) {
    const std::vector<std::string> generate{
        "generate", "-m",     tiny_model(kind), "-p",   "a prompt",
        "--temp",   "0",      "--dtype",        "fp32", "-n",
        "40",       "--json", "--ignore-eos"};
    const Outcome cpu = run_on("cpu", generate), gpu = run_on("cuda", generate);
    ASSERT_EQ(cpu.code, 0) << cpu.err;
    ASSERT_EQ(gpu.code, 0) << gpu.err;
    EXPECT_EQ(gpu.json()["samples"][0]["ids"], cpu.json()["samples"][0]["ids"]);
    const json one = cpu.json()["samples"][0]["logprobs"],
               two = gpu.json()["samples"][0]["logprobs"];
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_NEAR(one[i].get<double>(), two[i].get<double>(), 1e-3) << i;
    }
    const std::vector<std::string> score{"score", "-m",      tiny_model(kind), "--requests",
                                         "-",     "--dtype", "fp32",           "--json"};
    const std::string line = R"({"context": "the quick", "continuation": " brown fox"})";
    const Outcome here = run_on("cpu", score, line), there = run_on("cuda", score, line);
    ASSERT_EQ(there.code, 0) << there.err;
    EXPECT_NEAR(here.json()["logprob"].get<double>(), there.json()["logprob"].get<double>(), 1e-2);
  }
}

TEST_F(CudaProgram, RequestsAreAnsweredAlikeInBatchesOfAnySize) {
  const std::vector<json> requests = some_requests();
  for (const char* kind : {"siso", "mimo"}) {
    TestFolder folder;
    const std::string model = folder / "bf16";
    const Outcome made =
        run_mamba3({"convert", "-q", "-m", tiny_model(kind), "-o", model, "--out-dtype", "bf16"});
    ASSERT_EQ(made.code, 0) << made.err;
    for (const std::string& weights : {model, tiny_model(kind)}) {
      const std::vector<json> alone = answers(weights, requests, "1");
      ASSERT_EQ(alone.size(), requests.size());
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(alone[i]["index"], i);
        EXPECT_EQ(alone[i]["ids"].size(), requests[i]["max_tokens"].get<std::size_t>());
      }
      for (const char* batch : {"3", "16"}) {
        EXPECT_EQ(answers(weights, requests, batch), alone) << batch;
      }
    }
  }
}

// Overwrites one row of a model's embedding, which its head does not share.
void spoil_row(const std::string& model, std::int64_t row) {
  const std::string path = model + "/model.safetensors";
  std::string file = read_file(path);
  std::uint64_t head_bytes = 0;
  std::memcpy(&head_bytes, file.data(), sizeof(head_bytes));
  const json head = json::parse(file.substr(sizeof(head_bytes), head_bytes));
  const json& tensor = head["backbone.embedding.weight"];
  ASSERT_EQ(tensor["dtype"], "F32");
  const std::size_t width = tensor["shape"][1].get<std::size_t>();
  const std::size_t at = sizeof(head_bytes) + head_bytes +
                         tensor["data_offsets"][0].get<std::size_t>() +
                         static_cast<std::size_t>(row) * width * sizeof(float);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(file.data() + at, &nan, sizeof(nan));
  write_file(path, file);
}

// A byte that no sound answer holds, and no prompt.
int unused_id(const std::vector<json>& answers) {
  for (int id = 128; id < 256; ++id) {
    const auto holds = [id](const json& answer) {
      return std::find(answer["ids"].begin(), answer["ids"].end(), id) != answer["ids"].end();
    };
    if (std::none_of(answers.begin(), answers.end(), holds)) return id;
  }
  throw std::runtime_error("the answers hold every id");
}

TEST_F(CudaProgram, NanLogitsStopTheirSequenceAlone) {
  TestFolder folder;
  const std::string model = changed_model(folder.path(), {{"tie_embeddings", false}});
  std::vector<json> requests = some_requests();
  const std::vector<json> sound = answers(model, requests, "4");
  const int bad = unused_id(sound);
  spoil_row(model, bad);
  const json in_the_middle{{"prompt_ids", {97, bad, 97}}, {"max_tokens", 5}};
  const json penalised{{"prompt_ids", json::array({bad})}, {"repeat_penalty", 1.5}};
  requests.insert(requests.begin() + 2, in_the_middle);
  requests.insert(requests.begin() + 5, penalised);
  const std::vector<json> got = answers(model, requests, "4", 1);
  ASSERT_EQ(got.size(), requests.size());
  std::size_t next = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].contains("error"), requests[i].contains("prompt_ids")) << got[i];
    if (got[i].contains("error")) continue;
    EXPECT_EQ(got[i]["ids"], sound[next]["ids"]) << i;
    EXPECT_EQ(got[i]["logprobs"], sound[next]["logprobs"]) << i;
    ++next;
  }
}

TEST_F(CudaProgram, ShapesThatNoKernelsTakeAreRefusedAtLoad) {
  TestFolder folder;
  write_file(folder / "text", "some text");
  const std::vector<std::pair<json, std::string>> shapes{
      {{{"ssm_cfg", {{"d_state", 258}}}}, "n = 258"},
      {{{"d_model", 257}, {"ssm_cfg", {{"headdim", 257}, {"expand", 1}}}}, "p = 257"}};
  for (const auto& [shape, reason] : shapes) {
    const std::string model = changed_model(folder.path(), shape);
    const std::vector<std::vector<std::string>> commands{{"generate", "-p", "a"},
                                                         {"score", "--text", folder / "text"},
                                                         {"bench", "decode"},
                                                         {"bench", "prefill"},
                                                         {"generate", "--requests", "-"}};
    for (std::vector<std::string> arguments : commands) {
      arguments.insert(arguments.end(), {"-m", model});
      expect_error(run_on("cuda", arguments, R"({"prompt": "a"})"), 3, reason);
    }
    std::filesystem::remove_all(model);
  }
}

// 50 MB of states for each sequence, 200 GB for all of them: refused, with what would fit, before
// anything is loaded.
TEST_F(CudaProgram, ABatchWithoutRoomIsRefusedBeforeItIsLoaded) {
  TestFolder folder;
  const std::string model = changed_model(
      folder.path(), {{"n_layer", 24}, {"ssm_cfg", {{"d_state", 256}, {"expand", 64}}}});
  const std::string line = R"({"prompt": "a", "max_tokens": 1})";
  const std::vector<std::string> generate{"generate", "-m", model, "--requests", "-", "--batch"};
  const auto with_batch = [&](const std::string& batch) {
    std::vector<std::string> arguments = generate;
    arguments.push_back(batch);
    return run_on("cuda", arguments, line);
  };
  const Outcome refused = with_batch("4096");
  expect_error(refused, 3, "a batch of 4096 needs");
  EXPECT_NE(refused.err.find(" fits: choose that or less"), std::string::npos) << refused.err;
  EXPECT_EQ(with_batch("2").code, 0);
}

// As a training on texts does; on a CPU both are in fp32.
TEST_F(CudaProgram, TasksComputeInBf16UnlessTold) {
  const TestFolder folder;
  const auto name = [&](const std::string& output, const std::vector<std::string>& more) {
    std::vector<std::string> command{
        "train", "--task",        "parity", "--width",       "32", "--batch",       "4", "--stages",
        "4",     "--stage-steps", "2",      "--eval-length", "4",  "--eval-blocks", "4", "--rates",
        "1e-3",  "--seeds",       "0",      "--json",        "-o", folder / output};
    command.insert(command.end(), more.begin(), more.end());
    return run_on("cuda", command).json()["name"].get<std::string>();
  };
  EXPECT_EQ(name("usual", {}).find("state-tracking/parity/bf16/"), 0);
  EXPECT_EQ(name("told", {"--dtype", "fp32"}).find("state-tracking/parity/rope="), 0);
}

TEST_F(CudaProgram, VerifiesEveryGolden) {
  for (const char* dtype : {"fp32", "bf16"}) {
    const Outcome outcome = run_on(
        "cuda", {"verify", std::string(MAMBA3_TEST_DATA) + "/golden", "--json", "--dtype", dtype});
    const json report = outcome.json();
    EXPECT_EQ(outcome.code, 0);
    EXPECT_GT(report["passed"], 600);
    for (const json& each : report["cases"]) EXPECT_TRUE(each["ok"].get<bool>()) << each;
  }
}

}  // namespace
}  // namespace mamba3
