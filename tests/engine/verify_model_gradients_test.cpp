#include "engine/verify_model_gradients.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "io/tensor_file.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;

VerifyReport verify(const fs::path& folder, ComputeDType dtype) {
  ContextOptions options;
  options.threads = 2;
  Context ctx(options);
  VerifyReport report;
  verify_model_gradients(folder / "golden.safetensors", {dtype, true}, report, ctx);
  return report;
}

std::int64_t count_of(const VerifyReport& report, const std::string& path) {
  return std::ranges::count_if(
      report.cases, [&](const VerifyCase& c) { return c.tensor.ends_with(" (" + path + ")"); });
}

// A model's golden folder with one of its gradients changed.
struct Changed {
  explicit Changed(const fs::path& from)
      : folder(fs::temp_directory_path() / ("verify_model_gradients." + std::to_string(getpid()))) {
    fs::create_directories(folder);
    for (const char* name : {"config.json", "pytorch_model.bin"}) {
      fs::copy_file(from / name, folder / name, fs::copy_options::overwrite_existing);
    }
    const TensorFile file = read_safetensors(from / "golden.safetensors");
    std::vector<std::byte> bytes;
    std::vector<NamedTensor> tensors;
    for (const auto& [name, tensor] : file.tensors) {
      tensors.push_back({name, tensor});
      if (name != "grad.backbone.norm_f.weight") continue;
      bytes.assign(tensor.data, tensor.data + tensor.bytes());
      double value = 0;
      std::memcpy(&value, bytes.data(), sizeof(value));
      value += 1e-3;
      std::memcpy(bytes.data(), &value, sizeof(value));
      tensors.back().tensor.data = bytes.data();
    }
    write_safetensors(folder / "golden.safetensors", tensors, file.metadata);
  }
  ~Changed() { fs::remove_all(folder); }
  fs::path folder;
};

const fs::path kGoldens = fs::path(MAMBA3_TEST_DATA) / "golden";

TEST(VerifyModelGradients, OfTheOracleAndOfTheTrainingPass) {
  for (const char* name : {"lm_siso_fp32", "lm_mimo2_fp32_expand1"}) {
    const VerifyReport report = verify(kGoldens / name, ComputeDType::kF32);
    EXPECT_GE(count_of(report, "backward"), 25) << name;
    EXPECT_EQ(count_of(report, "oracle"), count_of(report, "backward"));
    for (const VerifyCase& c : report.cases) EXPECT_TRUE(c.ok) << name << ": " << c.tensor;
  }
  EXPECT_EQ(count_of(verify(kGoldens / "lm_siso_fp32", ComputeDType::kBf16), "backward"), 0);
  EXPECT_TRUE(verify(kGoldens / "lm_siso_bf16_defaults", ComputeDType::kF32).cases.empty());
}

TEST(VerifyModelGradients, AWrongNumberIsFound) {
  const Changed changed(kGoldens / "lm_siso_fp32");
  const VerifyReport report = verify(changed.folder, ComputeDType::kF32);
  for (const VerifyCase& c : report.cases) {
    EXPECT_EQ(c.ok, c.tensor.find("norm_f") == std::string::npos) << c.tensor;
  }
}

}  // namespace
}  // namespace mamba3
