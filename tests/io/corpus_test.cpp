// The seeds of the fuzz targets of io.
#include <gtest/gtest.h>

#include "corpus.h"
#include "io/config_file.h"
#include "io/document_reader.h"
#include "io/run_file.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

TEST(Corpus, TorchBin) {
  check_corpus("torch_bin", [](const auto& path) { read_torch_bin(path); });
}
TEST(Corpus, Safetensors) {
  check_corpus("safetensors", [](const auto& path) { read_safetensors(path); });
}
TEST(Corpus, ConfigJson) {
  check_corpus("config_json", [](const auto& path) { read_config(path); });
}
TEST(Corpus, RunFile) {
  check_corpus("run_file", [](const auto& path) { read_run_file(path); });
}
TEST(Corpus, Documents) {
  check_corpus("documents", [](const auto& path) {
    DocumentReader reader(path, {"--", "text"});
    for (std::string document; reader.next(document);) {
    }
  });
}

}  // namespace
}  // namespace mamba3
