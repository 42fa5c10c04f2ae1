// tokenize, inspect, convert, init, verify.
#include <gtest/gtest.h>

#include "cli/program.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kGolden = MAMBA3_TEST_DATA "/golden";

Outcome with_input(const std::vector<std::string>& arguments, const std::string& input) {
  RunOptions options;
  options.input = input;
  return run_mamba3(arguments, options);
}

// Logprobs of some ids: equal for equal weights.
std::string fingerprint(const std::string& model, const std::string& dtype = "fp32") {
  const Outcome outcome =
      with_input({"score", "-q", "-m", model, "--requests", "-", "--dtype", dtype, "--json"},
                 "{\"ids\": [1, 2, 3, 96, 5, 0, 7]}");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return outcome.out;
}

TEST(Tokenize, ThereAndBack) {
  const std::string tokenizer = tiny_model("siso") + "/tokenizer.json";
  const std::vector<std::string> base{"tokenize", "--tokenizer", tokenizer};
  const auto run = [&](std::vector<std::string> more, const std::string& input) {
    more.insert(more.begin(), base.begin(), base.end());
    return with_input(more, input);
  };
  EXPECT_EQ(run({}, "ab\n").out, "256 97 98 10\n");
  EXPECT_EQ(run({"--no-special"}, "ab").out, "97 98\n");
  EXPECT_EQ(run({"--json"}, "ab").json(), (json{{"ids", {256, 97, 98}}}));
  EXPECT_EQ(run({"--decode"}, "[97, 98 10]\n").out, "ab\n");
  EXPECT_EQ(run({"--decode"}, "256 97").out, "<|endoftext|>a");
  EXPECT_EQ(run({"--decode", "--no-special"}, "256 97").out, "a");
  EXPECT_EQ(run({"--jsonl", "--json"}, "{\"text\": \"a\"}\n{\"ids\": [98]}\n").out,
            "{\"ids\":[256,97]}\n{\"text\":\"b\"}\n");
  EXPECT_EQ(run({"--jsonl", "--json", "--decode"}, "{\"text\": \"a\", \"ids\": [98]}\n").out,
            "{\"text\":\"b\"}\n");
  EXPECT_EQ(run({"--jsonl"}, "{\"text\": \"a\\nb\"}\n").out, "{\"ids\":[256,97,10,98]}\n");
  expect_error(run({}, "ab\xff"), 1, "2");
  expect_error(run({"--decode"}, "1 257"), 1, "257");
  expect_error(run({"--decode"}, "a"), 1, "stdin");
  expect_error(run({"--jsonl"}, "{}\n"), 1, "line 1");
  EXPECT_EQ(with_input({"tokenize", "-m", tiny_model("siso")}, "a").out, "256 97\n");
  expect_error(with_input({"tokenize", "-m", kGolden + "/lm_siso_fp32"}, "a"), 1,
               "no tokenizer.json");
}

TEST(Inspect, TellsWhatAFolderHolds) {
  const Outcome outcome =
      run_mamba3({"inspect", "-m", kGolden + "/lm_mimo_bf16_mixed_g2", "--json", "--batch", "3"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  EXPECT_EQ(document["config"]["d_model"], 64);
  EXPECT_EQ(document["a_activation"], "heavy-tail");
  std::int64_t parameters = 0, bytes = 0;
  for (const json& tensor : document["tensors"]) {
    std::int64_t count = 1;
    for (const json& extent : tensor["shape"]) count *= extent.get<std::int64_t>();
    parameters += count;
    bytes += count * (tensor["dtype"] == "BF16" ? 2 : 4);
  }
  EXPECT_EQ(document["parameters"], parameters);
  EXPECT_EQ(document["weights_bytes"], bytes);
  EXPECT_GT(document["state_bytes_per_sequence"], 0);
  EXPECT_EQ(document["memory"]["states_bytes"],
            3 * document["state_bytes_per_sequence"].get<std::int64_t>());
  const Outcome text = run_mamba3({"inspect", "-m", kGolden + "/lm_siso_fp32", "--tensors"});
  EXPECT_NE(text.out.find("backbone.layers.1.mixer.B_norm.weight  F32  [16]"), std::string::npos);
}

// Whether or not there is a GPU: files can be inspected anywhere.
TEST(Inspect, SaysWhichPathAModelGetsOnAGpu) {
  const std::string model = kGolden + "/lm_mimo_bf16_mixed_g2";
  const Outcome outcome =
      run_mamba3({"inspect", "-m", model, "--device", "cuda", "--json", "--batch", "3"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json document = outcome.json();
  for (const char* op : {"mamba3_scan", "mamba3_step"}) {
    EXPECT_EQ(document["gpu"][op]["path"],
              op == std::string("mamba3_scan") ? "general on tensor cores" : "general");
    EXPECT_NE(document["gpu"][op]["because"].get<std::string>().find("tuned kernels are for"),
              std::string::npos);
  }
  EXPECT_EQ(document["layers"][0]["prefill"], "mamba3_scan, general on tensor cores");
  const json& memory = document["memory"];
  EXPECT_EQ(memory["batch"], 3);
  EXPECT_GT(memory["workspace_bytes"], memory["logits_bytes"]);
  EXPECT_EQ(memory["total_bytes"].get<std::int64_t>(),
            memory["weights_bytes"].get<std::int64_t>() +
                memory["states_bytes"].get<std::int64_t>() +
                memory["workspace_bytes"].get<std::int64_t>());
  const Outcome text = run_mamba3({"inspect", "-m", model, "--device", "cuda"});
  EXPECT_NE(text.out.find("mamba3_scan, general on tensor cores ("), std::string::npos) << text.out;
  const bool card = !document["gpu"]["name"].is_null();
  EXPECT_EQ(text.out.find("no GPU here") == std::string::npos, card);
  EXPECT_EQ(text.out.find("fits\n") != std::string::npos, card);
}

TEST(Inspect, SaysThatNoKernelsOfAGpuTakeALayer) {
  TestFolder folder;
  const std::string model = changed_model(folder.path(), {{"ssm_cfg", {{"d_state", 258}}}});
  const Outcome outcome = run_mamba3({"inspect", "-m", model, "--device", "cuda", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* op : {"mamba3_scan", "mamba3_step"}) {
    EXPECT_EQ(outcome.json()["gpu"][op]["path"], "none");
    EXPECT_EQ(outcome.json()["gpu"][op]["because"], "n = 258; a GPU's kernels are for at most 256");
  }
  EXPECT_EQ(run_mamba3({"inspect", "-m", model, "--device", "cpu"}).code, 0);
  EXPECT_EQ(run_mamba3({"generate", "-m", model, "--device", "cpu", "-p", "a", "-n", "1"}).code, 0);
}

// A rank that no device computes is refused by every command, before any work.
TEST(Inspect, ARankThatNoPathComputesIsRefused) {
  TestFolder folder;
  fs::copy(tiny_model("mimo"), folder.path(), fs::copy_options::recursive);
  json config = json::parse(read_file(folder / "config.json"));
  config["ssm_cfg"]["mimo_rank"] = 9;
  write_file(folder / "config.json", config.dump());
  for (const char* command : {"inspect", "generate"}) {
    std::vector<std::string> arguments{command, "-q", "-m", folder.path().string()};
    if (command == std::string("generate")) arguments.insert(arguments.end(), {"-p", "a"});
    expect_error(run_mamba3(arguments), 3, "mimo_rank is 9");
  }
}

TEST(Inspect, NamesTensorsThatDoNotFit) {
  TestFolder folder;
  fs::copy(kGolden + "/lm_siso_fp32", folder.path(), fs::copy_options::recursive);
  std::string config = read_file(folder / "config.json");
  const std::size_t at = config.find("\"d_state\": 16");
  ASSERT_NE(at, std::string::npos);
  config.replace(at, 13, "\"d_state\": 32");
  write_file(folder / "config.json", config);
  for (const char* command : {"inspect", "generate"}) {
    std::vector<std::string> arguments{command, "-q", "-m", folder.path().string()};
    if (arguments[0] == "generate") arguments.insert(arguments.end(), {"--prompt-ids", "1"});
    expect_error(run_mamba3(arguments), 1, "B_norm.weight is [16], expected [32]");
  }
}

TEST(Convert, EveryFormatHoldsTheSameModel) {
  TestFolder folder;
  for (const char* kind : {"lm_siso_fp32", "lm_mimo_bf16_mixed_g2"}) {
    const std::string from = kGolden + "/" + kind;
    const std::string as_bin = folder / std::string(kind) + ".bin",
                      shards = folder / std::string(kind);
    const std::vector<std::vector<std::string>> steps = {
        {"-m", from, "-o", shards, "--shard-bytes", "40000", "--json"},
        {"-m", shards, "-o", as_bin, "--format", "bin", "--json"},
        {"-m", as_bin + "/pytorch_model.bin", "-o", shards + "-again", "--json"},
    };
    for (const auto& step : steps) {
      std::vector<std::string> arguments{"convert", "-q"};
      arguments.insert(arguments.end(), step.begin(), step.end());
      const Outcome outcome = run_mamba3(arguments);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      EXPECT_GT(outcome.json()["bytes"], 0);
    }
    EXPECT_TRUE(fs::exists(shards + "/model.safetensors.index.json"));
    EXPECT_TRUE(fs::exists(shards + "-again/model.safetensors"));
    for (const std::string& made : {shards, as_bin, shards + "-again"}) {
      EXPECT_EQ(fingerprint(made), fingerprint(from)) << made;
      const json config = json::parse(read_file(made + "/config.json"));
      EXPECT_EQ(config["ssm_cfg"]["a_activation"], "heavy-tail");
    }
  }
}

TEST(Convert, WhatIsNotTheAuthorsFormatIsNotWrittenAsIt) {
  TestFolder folder;
  for (const char* rope : {"standard", "none"}) {
    fs::create_directory(folder / rope);
    const std::string model = changed_model(folder / rope, {{"ssm_cfg", {{"rope", rope}}}});
    expect_error(
        run_mamba3({"convert", "-q", "-m", model, "-o", folder / "bin", "--format", "bin"}), 1,
        "which the authors' package does not have");
    const std::string again = folder / (std::string(rope) + "-again");
    ASSERT_EQ(run_mamba3({"convert", "-q", "-m", model, "-o", again}).code, 0);
    EXPECT_EQ(fingerprint(again), fingerprint(model));
    const Outcome told = run_mamba3({"inspect", "-m", again, "--json"});
    EXPECT_EQ(told.json()["config"]["ssm_cfg"]["rope"], rope);
    EXPECT_NE(run_mamba3({"inspect", "-m", again}).out.find(rope), std::string::npos);
  }
}

TEST(Convert, OutDtypeChangesWhatThePackageWouldChange) {
  TestFolder folder;
  const std::string from = kGolden + "/lm_siso_fp32";
  const auto convert = [&](const std::string& source, const std::string& name,
                           const std::string& dtype) {
    const Outcome outcome = run_mamba3({"convert", "-q", "-m", source, "-o", folder / name,
                                        "--out-dtype", dtype, "--a-activation", "softplus"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return json::parse(run_mamba3({"inspect", "-m", folder / name, "--json"}).out);
  };
  const json narrow = convert(from, "bf16", "bf16");
  for (const json& tensor : narrow["tensors"]) {
    const std::string name = tensor["name"];
    const bool wide = name.find("_bias") != std::string::npos || name.ends_with(".D");
    EXPECT_EQ(tensor["dtype"], wide ? "F32" : "BF16") << name;
  }
  EXPECT_EQ(narrow["a_activation"], "softplus");
  EXPECT_EQ(narrow["a_activation_recorded"], true);
  convert(folder / "bf16", "wide", "fp32");
  EXPECT_EQ(fingerprint(folder / "wide"), fingerprint(folder / "bf16"));
}

TEST(Convert, RefusesAFolderThatHoldsSomethingUnlessForced) {
  TestFolder folder;
  const std::string from = kGolden + "/lm_siso_fp32", to = folder / "to";
  fs::create_directory(to);
  write_file(to + "/notes", "mine");
  write_file(to + "/model-00001-of-00002.safetensors", "old");
  expect_error(run_mamba3({"convert", "-q", "-m", from, "-o", to}), 1, "not empty");
  EXPECT_EQ(std::distance(fs::directory_iterator(to), fs::directory_iterator()), 2);
  const Outcome forced = run_mamba3({"convert", "-q", "-m", from, "-o", to, "--force"});
  ASSERT_EQ(forced.code, 0) << forced.err;
  EXPECT_EQ(read_file(to + "/notes"), "mine");
  EXPECT_FALSE(fs::exists(to + "/model-00001-of-00002.safetensors"));
  EXPECT_EQ(fingerprint(to), fingerprint(from));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1)
      << "something stayed beside the target";
  expect_error(run_mamba3({"convert", "-q", "-m", from, "-o", to + "/notes"}), 1, "is a file");
  expect_error(run_mamba3({"convert", "-q", "-m", from, "-o", to + "/notes/x"}), 1, "cannot");
}

TEST(Convert, LeavesNoTokenizerOfAnotherModel) {
  TestFolder folder;
  const std::string to = folder / "to", golden = kGolden + "/lm_siso_fp32";
  ASSERT_EQ(run_mamba3({"convert", "-q", "-m", tiny_model("siso"), "-o", to}).code, 0);
  ASSERT_EQ(run_mamba3({"convert", "-q", "-m", golden, "-o", to, "--force"}).code, 0);
  EXPECT_FALSE(fs::exists(to + "/tokenizer.json"));
  expect_error(run_mamba3({"convert", "-q", "-m", golden, "-o", folder / "x", "--tokenizer",
                           tiny_model("siso") + "/tokenizer.json"}),
               1, "the tokenizer has 257 ids but the model only 104");
}

TEST(Convert, KeepsTokenizerAndEndOfText) {
  TestFolder folder;
  const std::string from = folder / "from", to = folder / "to";
  fs::copy(tiny_model("siso"), from, fs::copy_options::recursive);
  json config = json::parse(read_file(from + "/config.json"));
  config["eos_token_id"] = 33;
  write_file(from + "/config.json", config.dump());
  ASSERT_EQ(run_mamba3({"convert", "-q", "-m", from, "-o", to}).code, 0);
  EXPECT_EQ(read_file(to + "/tokenizer.json"), byte_tokenizer_json());
  EXPECT_EQ(json::parse(read_file(to + "/generation_config.json"))["eos_token_id"], json({33}));
}

TEST(Init, TheFolderMayBeNamedFromWhereOneIs) {
  TestFolder folder;
  write_file(folder / "c.json", R"({"d_model": 32, "n_layer": 1, "vocab_size": 257, "ssm_cfg":
      {"layer": "Mamba3", "d_state": 16, "headdim": 16}})");
  const fs::path here = fs::current_path();
  fs::current_path(folder.path());
  const Outcome made = run_mamba3({"init", "--config", "c.json", "-o", "made"});
  fs::current_path(here);
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_TRUE(fs::exists(folder.path() / "made" / "model.safetensors"));
}

TEST(Init, TheSeedDecidesTheWeights) {
  TestFolder folder;
  write_file(folder / "config.json",
             R"({"d_model": 32, "n_layer": 1, "vocab_size": 100, "ssm_cfg": {"layer": "Mamba3"}})");
  const auto init = [&](const std::string& name, const std::string& seed) {
    const Outcome outcome = run_mamba3(
        {"init", "--config", folder / "config.json", "-o", folder / name, "-s", seed, "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.json()["seed"], std::stoi(seed));
    return read_file(folder / name + "/model.safetensors");
  };
  const std::string first = init("a", "1");
  EXPECT_EQ(init("b", "1"), first);
  EXPECT_NE(init("c", "2"), first);
  expect_error(run_mamba3({"init", "--preset", "siso-1b", "-o", folder / "d"}), 1, "siso-187m");
  expect_error(run_mamba3({"init", "-o", folder / "d"}), 2, "--preset");
}

TEST(Verify, MeetsAGoldenAndRefusesASpoiltOne) {
  TestFolder folder;
  const std::string golden = kGolden + "/scan_siso_n32_p32_g2_t7_init.safetensors";
  const Outcome good = run_mamba3({"verify", golden, "--json"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(good.json()["failed"], 0);
  EXPECT_GT(good.json()["passed"], 3);
  const json each = good.json()["cases"][0];
  for (const char* key : {"file", "tensor", "max_rel_error", "naive_error", "bound", "ok"}) {
    EXPECT_TRUE(each.contains(key)) << key;
  }
  std::string bytes = read_file(golden);
  const TensorFile file = read_safetensors(golden);
  const TensorRef& y = file.tensors.at("out.y");
  const auto offset = reinterpret_cast<const char*>(y.data) -
                      reinterpret_cast<const char*>(file.files[0]->bytes().data());
  const double wrong = 1e3;
  bytes.replace(static_cast<std::size_t>(offset), 8, reinterpret_cast<const char*>(&wrong), 8);
  write_file(folder / "scan_spoilt.safetensors", bytes);
  const Outcome bad = run_mamba3({"verify", folder / "scan_spoilt.safetensors", "--json"});
  EXPECT_EQ(bad.code, 1);
  EXPECT_GT(bad.json()["failed"], 0);
}

}  // namespace
}  // namespace mamba3
