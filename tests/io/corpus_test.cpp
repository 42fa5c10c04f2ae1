// The seeds of the fuzz targets: those named ok_ are read, those named bad_ refused.
#include <gtest/gtest.h>

#include "file_test_util.h"
#include "io/config_file.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

void check_corpus(const std::string& target,
                  const std::function<void(const std::filesystem::path&)>& read) {
  const std::filesystem::path folder =
      std::filesystem::path(MAMBA3_REPOSITORY) / "fuzz" / "corpus" / target;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const std::string message = error_of([&] { read(entry.path()); });
    if (name.starts_with("ok_")) {
      EXPECT_EQ(message, "") << name;
    } else if (name.starts_with("bad_")) {
      EXPECT_NE(message.find("; expected"), std::string::npos) << name << ": " << message;
    }
    ++files;
  }
  EXPECT_GT(files, 5);
}

TEST(Corpus, TorchBin) {
  check_corpus("torch_bin", [](const auto& path) { read_torch_bin(path); });
}
TEST(Corpus, Safetensors) {
  check_corpus("safetensors", [](const auto& path) { read_safetensors(path); });
}
TEST(Corpus, ConfigJson) {
  check_corpus("config_json", [](const auto& path) { read_config(path); });
}

}  // namespace
}  // namespace mamba3
