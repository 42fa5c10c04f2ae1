#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "io/config_file.h"
#include "io/tensor_file.h"
#include "mamba3/engine.h"
#include "mamba3/error.h"
#include "model/init.h"
#include "model/tiny_models.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;

// A checkpoint folder of a tiny model, which a test may spoil before it is loaded.
class LoadTest : public testing::Test {
 protected:
  LoadTest() {
    options.log = [this](LogLevel level, const std::string& text) {
      if (level == LogLevel::kWarning) warnings.push_back(text);
    };
    ctx = Context(options);
    folder = fs::temp_directory_path() / ("mamba3_load_test_" + std::to_string(::getpid()));
    fs::create_directories(folder);
    initial = init_tensors(config, DType::kF32, 3, ctx);
    tensors = initial.tensors;
  }
  ~LoadTest() override { fs::remove_all(folder); }

  void write() {
    std::vector<NamedTensor> list;
    for (const auto& [name, tensor] : tensors) list.push_back({name, tensor});
    write_safetensors(folder / "model.safetensors", list, {});
    std::ofstream(folder / "config.json") << config_to_json(config);
  }
  std::string error_of_load(const LoadOptions& with = {}) {
    try {
      load_checkpoint(folder, with, ctx);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput);
      return error.what();
    }
    return "";
  }
  // A changeable copy of one tensor.
  float* own(const std::string& name) {
    TensorRef& tensor = tensors.at(name);
    copy.assign(tensor.data, tensor.data + tensor.bytes());
    tensor.data = copy.data();
    return reinterpret_cast<float*>(copy.data());
  }

  ModelConfig config = tiny_models()[0].config;
  std::vector<std::string> warnings;
  ContextOptions options;
  Context ctx;
  fs::path folder;
  InitialTensors initial;
  std::map<std::string, TensorRef> tensors;
  std::vector<std::byte> copy;
};

TEST_F(LoadTest, ReadsBackWhatWasWritten) {
  write();
  const Checkpoint checkpoint = load_checkpoint(folder, {}, ctx);
  EXPECT_EQ(checkpoint.model->fingerprint(),
            Model::random(config, DType::kF32, 3, {}, ctx)->fingerprint());
  EXPECT_EQ(checkpoint.model->compute(), ComputeDType::kF32);
  EXPECT_EQ(checkpoint.tokenizer, nullptr);
  EXPECT_TRUE(warnings.empty());
}

TEST_F(LoadTest, AllTensorsThatDoNotFitAreNamedAtOnce) {
  tensors.erase("backbone.layers.0.mixer.D");
  tensors.at("backbone.layers.1.mixer.dt_bias").shape = {2, 2};
  tensors["backbone.layers.1.mixer.conv1d.weight"] = tensors.at("backbone.norm_f.weight");
  write();
  const std::string error = error_of_load();
  EXPECT_NE(error.find("missing backbone.layers.0.mixer.D [4]"), std::string::npos) << error;
  EXPECT_NE(error.find("backbone.layers.1.mixer.dt_bias is [2, 2], expected [4]"),
            std::string::npos)
      << error;
  EXPECT_NE(error.find("unexpected \"backbone.layers.1.mixer.conv1d.weight\""), std::string::npos)
      << error;
}

TEST_F(LoadTest, NonFiniteWeightsWarnAndAreRefusedWhenStrict) {
  own("backbone.layers.1.mixer.out_proj.weight")[7] = std::numeric_limits<float>::quiet_NaN();
  write();
  LoadOptions strict;
  strict.strict = true;
  EXPECT_NE(error_of_load(strict).find("out_proj"), std::string::npos);
  EXPECT_EQ(error_of_load(), "");
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("out_proj"), std::string::npos);
}

TEST_F(LoadTest, TheActivationIsTheUsersThenTheFilesThenHeavyTail) {
  config.mixer.a_activation = AActivation::kSoftplus;
  config.mixer.a_activation_recorded = true;
  write();
  EXPECT_EQ(load_checkpoint(folder, {}, ctx).model->config().mixer.a_activation,
            AActivation::kSoftplus);
  LoadOptions heavy;
  heavy.a_activation = AActivation::kHeavyTail;
  EXPECT_EQ(load_checkpoint(folder, heavy, ctx).model->config().mixer.a_activation,
            AActivation::kHeavyTail);
}

TEST_F(LoadTest, AFolderWithoutAModelSaysWhatIsMissing) {
  EXPECT_NE(error_of_load().find("config.json"), std::string::npos);
  std::ofstream(folder / "config.json") << config_to_json(config);
  EXPECT_NE(error_of_load().find("model.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace mamba3
