#include "io/config_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "file_test_util.h"
#include "io/json.h"

namespace mamba3 {
namespace {

using nlohmann::json;

json full() {
  return json::parse(R"({"d_model": 32, "d_intermediate": 96, "n_layer": 2, "vocab_size": 97,
      "ssm_cfg": {"layer": "Mamba3", "d_state": 16, "expand": 2, "headdim": 16, "ngroups": 2,
        "rope_fraction": 1.0, "A_floor": 0.01, "is_mimo": true, "mimo_rank": 2, "chunk_size": 8,
        "is_outproj_norm": true, "use_tilelang": true},
      "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "pad_vocab_size_multiple": 16,
      "tie_embeddings": false, "model_type": "mamba3", "torch_dtype": "bfloat16"})");
}

TEST(ConfigFile, AMisspeltKeyOfANewModelIsNamedWithTheNearest) {
  EXPECT_EQ(error_of([] { parse_config(full().dump(), "input", true); }), "");
  json wrong = full();
  wrong["d_modle"] = 64;
  EXPECT_EQ(error_of([&] { parse_config(wrong.dump(), "input"); }), "");
  expect_error(
      "input has a key \"d_modle\" that means nothing; expected known keys; perhaps d_model",
      [&] { parse_config(wrong.dump(), "input", true); });
  wrong = full();
  wrong["ssm_cfg"]["head_dim"] = 32;
  expect_error(
      "ssm_cfg has a key \"head_dim\" that means nothing; expected known keys; perhaps headdim",
      [&] { parse_config(wrong.dump(), "input", true); });
  json unknown = full();
  unknown["hidden_size"] = 64;
  expect_error("input has a key \"hidden_size\" that means nothing; expected one of ssm_cfg, ",
               [&] { parse_config(unknown.dump(), "input", true); });
  const TempFolder folder;
  write_text(folder / "config.json", wrong.dump());
  EXPECT_EQ(error_of([&] { read_config(folder / "config.json"); }), "");
  expect_error("perhaps headdim", [&] { read_new_config(folder / "config.json"); });
}

TEST(ConfigFile, ReadsEveryField) {
  const ModelConfig config = parse_config(full().dump(), "input");
  EXPECT_EQ(config.width, 32);
  EXPECT_EQ(config.mlp_hidden, 128);
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.vocab, 97);
  EXPECT_EQ(config.padded_vocab(), 112);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_EQ(config.mixer.state, 16);
  EXPECT_EQ(config.mixer.head_dim, 16);
  EXPECT_EQ(config.mixer.groups, 2);
  EXPECT_EQ(config.mixer.rope_fraction, 1.0);
  EXPECT_EQ(config.mixer.a_floor, 0.01);
  EXPECT_TRUE(config.mixer.mimo);
  EXPECT_EQ(config.mixer.rank, 2);
  EXPECT_EQ(config.mixer.chunk_size, 8);
  EXPECT_TRUE(config.mixer.out_norm);
  EXPECT_FALSE(config.mixer.a_activation_recorded);
}

TEST(ConfigFile, ThePackagesDefaults) {
  const ModelConfig config = parse_config(R"({"ssm_cfg": {"layer": "Mamba3"}})", "input");
  EXPECT_EQ(config.width, 2560);
  EXPECT_EQ(config.mlp_hidden, 0);
  EXPECT_EQ(config.layers, 64);
  EXPECT_EQ(config.vocab, 50277);
  EXPECT_EQ(config.padded_vocab(), 50280);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_EQ(config.mixer.state, 128);
  EXPECT_EQ(config.mixer.head_dim, 64);
  EXPECT_EQ(config.mixer.rank, 1);
  EXPECT_EQ(config.mixer.a_floor, 1e-4);
  EXPECT_EQ(config.mixer.rope_fraction, 0.5);
}

TEST(ConfigFile, RankNeedsMimo) {
  json document = full();
  document["ssm_cfg"].erase("mimo_rank");
  EXPECT_EQ(parse_config(document.dump(), "").mixer.rank, 4);
  document["ssm_cfg"]["mimo_rank"] = 1;
  EXPECT_TRUE(parse_config(document.dump(), "").mixer.mimo);
  EXPECT_EQ(parse_config(document.dump(), "").mixer.rank, 1);
  document["ssm_cfg"]["is_mimo"] = false;
  document["ssm_cfg"]["mimo_rank"] = 4;
  EXPECT_EQ(parse_config(document.dump(), "").mixer.rank, 1);
}

TEST(ConfigFile, RecordsTheActivation) {
  json document = full();
  for (const char* name : {"heavy-tail", "softplus"}) {
    document["ssm_cfg"]["a_activation"] = name;
    const ModelConfig config = parse_config(document.dump(), "");
    EXPECT_TRUE(config.mixer.a_activation_recorded);
    EXPECT_STREQ(a_activation_name(config.mixer.a_activation), name);
    const ModelConfig again = parse_config(config_to_json(config), "");
    EXPECT_STREQ(a_activation_name(again.mixer.a_activation), name);
    EXPECT_EQ(config_to_json(again), config_to_json(config));
  }
}

TEST(ConfigFile, WrittenPresetsReadBack) {
  for (const std::string& name : preset_names()) {
    const ModelConfig config = preset(name);
    const ModelConfig again = parse_config(config_to_json(config), name);
    EXPECT_EQ(again.parameters(), config.parameters()) << name;
    EXPECT_EQ(again.mixer.chunk_size, config.mixer.chunk_size);
    EXPECT_TRUE(again.mixer.a_activation_recorded);
  }
}

TEST(ConfigFile, OtherArchitecturesAreNamed) {
  const auto refused = [](const char* pointer, const json& value, const std::string& part) {
    json document = full();
    document[json::json_pointer(pointer)] = value;
    expect_error(part, [&] { parse_config(document.dump(), "input"); });
  };
  refused("/ssm_cfg/layer", "Mamba1", "this is Mamba-1: not supported yet");
  refused("/ssm_cfg/layer", "Mamba2", "this is Mamba-2: not supported yet");
  refused("/ssm_cfg/layer", "Hyena", "ssm_cfg.layer is \"Hyena\"");
  refused("/ssm_cfg", json::object(), "missing, which means Mamba-1");
  refused("/attn_layer_idx", {1, 3}, "attn_layer_idx is \"[1,3]\": attention layers");
  refused("/rms_norm", false, "LayerNorm is not supported");
  expect_error("missing, which means Mamba-1", [] { parse_config("{}", "input"); });
}

TEST(ConfigFile, BadValuesNameTheirField) {
  const std::pair<const char*, std::vector<json>> cases[] = {
      {"/d_model", {0, -1, "32", 32.5, nullptr, true, json::array(), 1e300, INT64_MAX, UINT64_MAX}},
      {"/n_layer", {0, -1, 1 << 20, INT64_MIN}},
      {"/vocab_size", {0, -5, INT64_MAX}},
      {"/d_intermediate", {-1, INT64_MAX, "x"}},
      {"/pad_vocab_size_multiple", {0, -8, INT64_MAX}},
      {"/tie_embeddings", {1, "true", nullptr}},
      {"/ssm_cfg/d_state", {0, 17, -16, INT64_MAX}},
      {"/ssm_cfg/expand", {0, INT64_MAX, 2.0}},
      {"/ssm_cfg/headdim", {0, 17, INT64_MAX}},
      {"/ssm_cfg/ngroups", {0, 3, INT64_MAX}},
      {"/ssm_cfg/rope_fraction", {0, 0.25, 2, "0.5"}},
      {"/ssm_cfg/rope", {"fixed", 1, nullptr}},
      {"/ssm_cfg/A_floor", {-1, "x", nullptr}},
      {"/ssm_cfg/is_mimo", {1, "true"}},
      {"/ssm_cfg/mimo_rank", {0, 9, -1, "4"}},
      {"/ssm_cfg/chunk_size", {0, "64"}},
      {"/ssm_cfg/a_activation", {"relu", 1}},
      {"/attn_layer_idx", {5, "x", json::object()}},
      {"/rms_norm", {1}},
  };
  for (const auto& [pointer, values] : cases) {
    for (const json& value : values) {
      json document = full();
      document[json::json_pointer(pointer)] = value;
      const std::string message = error_of([&] { parse_config(document.dump(), "input"); });
      EXPECT_NE(message.find("; expected"), std::string::npos) << pointer << " " << value;
      const std::string field = std::string(pointer).substr(std::string(pointer).rfind('/') + 1);
      const bool named = message.find(field) != std::string::npos || field == "d_intermediate";
      EXPECT_TRUE(named) << pointer << ": " << message;
    }
  }
}

// The package reads no "rope": where it need not be there, it is not.
TEST(ConfigFile, RotationsComeBack) {
  const ModelConfig config = parse_config(full().dump(), "input");
  EXPECT_EQ(config.mixer.rope, Rope::kDataDependent);
  EXPECT_EQ(config_to_json(config).find("\"rope\""), std::string::npos);
  for (const Rope rope : {Rope::kStandard, Rope::kNone}) {
    ModelConfig other = config;
    other.mixer.rope = rope;
    EXPECT_EQ(parse_config(config_to_json(other), "input").mixer.rope, rope);
    EXPECT_EQ(config.in_proj_rows() - other.in_proj_rows(), config.mixer.angles());
    EXPECT_EQ(other.mixer.angles(), rope == Rope::kNone ? 0 : config.mixer.angles());
  }
}

TEST(ConfigFile, BadJson) {
  const std::string cases[] = {
      "",     "{",       "[]",          "null",          "{\"a\":\xff}",
      "{} x", "{'a':1}", "{\"a\":NaN}", "{\"a\":1e999}", std::string("{}\0", 3)};
  for (const std::string& text : cases) {
    EXPECT_NE(error_of([&] { parse_config(text, "input"); }), "") << text;
  }
  expect_error("nests deeper", [] { parse_config(std::string(100000, '['), "input"); });
  expect_error("nests deeper", [] {
    std::string text;
    for (int i = 0; i < 1000; ++i) text += "{\"a\":";
    parse_config(text, "input");
  });
  expect_error("expected at most", [] { parse_config(std::string(2 << 20, ' '), "input"); });
  // Brackets in texts are not depth.
  EXPECT_NO_THROW(parse_json_limited("[\"" + std::string(100, '[') + "\\\"[[[\"]", "", {1000, 2}));
}

TEST(GenerationConfig, NumbersListsAndWhereTheyStand) {
  const TempFolder folder;
  EXPECT_TRUE(read_generation_config(folder.path()).eos_token_ids.empty());
  write_text(folder / "config.json", R"({"eos_token_id": 7})");
  EXPECT_EQ(read_generation_config(folder.path()).eos_token_ids, (std::vector<std::int32_t>{7}));
  write_text(folder / "generation_config.json", R"({"eos_token_id": null})");
  EXPECT_EQ(read_generation_config(folder.path()).eos_token_ids, (std::vector<std::int32_t>{7}));
  write_text(folder / "generation_config.json", R"({"eos_token_id": [128001, 0]})");
  EXPECT_EQ(read_generation_config(folder.path()).eos_token_ids,
            (std::vector<std::int32_t>{128001, 0}));
  for (const char* value : {"-1", "\"x\"", "[1.5]", "[[1]]", "2147483648", "{}"}) {
    write_text(folder / "generation_config.json", std::string("{\"eos_token_id\":") + value + "}");
    expect_error("eos_token_id", [&] { read_generation_config(folder.path()); });
  }
}

}  // namespace
}  // namespace mamba3
