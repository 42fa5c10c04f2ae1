#include "mamba3/config.h"

#include <gtest/gtest.h>

#include <functional>

#include "mamba3/error.h"

namespace mamba3 {
namespace {

TEST(Config, PresetsHaveTheOfficialSizes) {
  EXPECT_EQ(preset_names().size(), 8u);
  for (const std::string& name : preset_names())
    EXPECT_NO_THROW(check_config(preset(name))) << name;
  EXPECT_NEAR(static_cast<double>(preset("siso-187m").parameters()), 187e6, 2e6);
  EXPECT_NEAR(static_cast<double>(preset("siso-440m").parameters()), 442.8e6, 1e6);
  EXPECT_NEAR(static_cast<double>(preset("siso-890m").parameters()), 892e6, 1e6);
  EXPECT_EQ(preset("mimo-1.5b").mlp_hidden, 3840);
  EXPECT_EQ(preset("mimo-1.5b").mixer.rank, 4);
  EXPECT_EQ(preset("siso-1.5b").heads(), 64);
  EXPECT_THROW(preset("siso-2b"), Error);
}

TEST(Config, DerivedSizes) {
  ModelConfig config;
  config.width = 48;
  config.vocab = 101;
  config.layers = 3;
  config.tied_embeddings = false;
  config.mixer.state = 18;
  config.mixer.head_dim = 16;
  config.mixer.groups = 3;
  config.mixer.mimo = true;
  config.mixer.rank = 2;
  config.mixer.rope_fraction = 0.5;
  check_config(config);
  EXPECT_EQ(config.mixer.angles(), 4);  // 9 becomes 8, halved
  EXPECT_EQ(config.heads(), 6);
  EXPECT_EQ(config.in_proj_rows(), 2 * 96 + 2 * 2 * 3 * 18 + 3 * 6 + 4);
  EXPECT_EQ(config.padded_vocab(), 104);
  EXPECT_EQ(config.state_bytes(), 3 * 4 * (6 * 4 + 96 * 18 + 2 * 6 * 18 + 96));
}

TEST(Config, TensorsInThePackagesOrder) {
  ModelConfig config;
  config.width = 8;
  config.layers = 1;
  config.vocab = 10;
  config.mlp_hidden = 128;
  config.tied_embeddings = false;
  config.mixer.head_dim = 4;
  config.mixer.mimo = true;
  config.mixer.rank = 4;
  config.mixer.out_norm = true;
  const std::vector<std::string> expected{"backbone.embedding.weight",
                                          "backbone.layers.0.norm.weight",
                                          "backbone.layers.0.mixer.dt_bias",
                                          "backbone.layers.0.mixer.B_bias",
                                          "backbone.layers.0.mixer.C_bias",
                                          "backbone.layers.0.mixer.mimo_x",
                                          "backbone.layers.0.mixer.mimo_z",
                                          "backbone.layers.0.mixer.mimo_o",
                                          "backbone.layers.0.mixer.D",
                                          "backbone.layers.0.mixer.in_proj.weight",
                                          "backbone.layers.0.mixer.B_norm.weight",
                                          "backbone.layers.0.mixer.C_norm.weight",
                                          "backbone.layers.0.mixer.norm.weight",
                                          "backbone.layers.0.mixer.out_proj.weight",
                                          "backbone.layers.0.norm2.weight",
                                          "backbone.layers.0.mlp.fc1.weight",
                                          "backbone.layers.0.mlp.fc2.weight",
                                          "backbone.norm_f.weight",
                                          "lm_head.weight"};
  std::vector<std::string> names;
  for (const TensorSpec& spec : tensor_specs(config)) names.push_back(spec.name);
  EXPECT_EQ(names, expected);
  config.tied_embeddings = true;
  config.mlp_hidden = 0;
  config.mixer.mimo = false;
  config.mixer.rank = 1;
  config.mixer.out_norm = false;
  EXPECT_EQ(tensor_specs(config).size(), expected.size() - 8);
}

TEST(Config, RefusesWhatNoModelCanBeBuiltFrom) {
  const std::vector<std::function<void(ModelConfig&)>> changes{
      [](ModelConfig& c) { c.width = 0; },
      [](ModelConfig& c) { c.width = INT64_MAX; },
      [](ModelConfig& c) { c.layers = 1 << 30; },
      [](ModelConfig& c) { c.vocab = -1; },
      [](ModelConfig& c) { c.vocab_multiple = 0; },
      [](ModelConfig& c) { c.mlp_hidden = -128; },
      [](ModelConfig& c) { c.mixer.head_dim = 33; },
      [](ModelConfig& c) { c.mixer.groups = 5; },
      [](ModelConfig& c) { c.mixer.rank = 2; },
      [](ModelConfig& c) { c.mixer.state = 17; },
      [](ModelConfig& c) { c.mixer.state = 2; },  // no pair at rope_fraction 0.5
      [](ModelConfig& c) { c.mixer.rope_fraction = 0.25; },
      [](ModelConfig& c) { c.mixer.rope_fraction = 0.0 / 0.0; },
      [](ModelConfig& c) { c.mixer.a_floor = 0.0 / 0.0; },
      [](ModelConfig& c) { c.mixer.expand = 1 << 20; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    ModelConfig config = preset("siso-187m");
    changes[i](config);
    EXPECT_THROW(check_config(config), Error) << "change " << i;
  }
}

// Such a file may be sound: it is this version that has no path for it.
TEST(Config, ARankThatNoPathComputesIsUnavailable) {
  ModelConfig config = preset("mimo-1.5b");
  config.mixer.rank = 8;
  EXPECT_NO_THROW(check_config(config));
  config.mixer.rank = 9;
  try {
    check_config(config);
    ADD_FAILURE() << "rank 9 is taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
  }
}

}  // namespace
}  // namespace mamba3
