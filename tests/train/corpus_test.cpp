// The seeds of the fuzz targets of train.
#include "../io/corpus.h"

#include "train/token_cache.h"
#include "train/train_checkpoint.h"

namespace mamba3 {
namespace {

TEST(Corpus, TokenCache) {
  check_corpus("token_cache", [](const auto& path) { TokenCache::open(path, 1); });
}
TEST(Corpus, TrainingFiles) {
  check_corpus("training_files",
               [](const auto& path) { parse_train_record(read_text(path), path.string()); });
}

}  // namespace
}  // namespace mamba3
