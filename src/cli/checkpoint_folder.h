// Writing a checkpoint folder as a whole: what convert and init share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/cli11_forward.h"
#include "cli/common.h"
#include "io/tensor_file.h"
#include "mamba3/config.h"

namespace CLI {
class App;
}

namespace mamba3::cli {

// What stands in a checkpoint's folder beside config and weights.
constexpr const char* kSideNames[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                                      "special_tokens_map.json", "generation_config.json"};

// A folder that is made beside its place and moved there when it is complete: until commit(),
// nothing is seen of it, and without it nothing stays.
class CheckpointFolder {
 public:
  // Refuses a target that holds anything, unless forced: then its files are replaced one by one.
  CheckpointFolder(const std::filesystem::path& target, bool force);
  ~CheckpointFolder();
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  const std::filesystem::path& staging() const { return staging_; }
  // `with_side_files`: of those that were there, the ones that are not replaced go too.
  void commit(bool with_side_files);

 private:
  void move_into_place(bool with_side_files);

  std::filesystem::path target_;
  std::filesystem::path staging_;
};

struct WriteOptions {
  std::string output;
  std::string format = "safetensors";
  std::int64_t shard_bytes = 5'000'000'000;
  bool force = false;
};
void add_write_options(CLI::App& app, WriteOptions& options);

// What goes beside the weights.
struct SideFiles {
  std::vector<std::filesystem::path> copied;  // under their own names
  std::filesystem::path tokenizer;            // under the name that a folder's tokenizer has
  std::vector<std::int32_t> eos_ids;          // written when no generation_config.json is copied
  bool all = false;  // others that are in a folder whose files are replaced do not belong there
};

// Writes `tensors` (all of tensor_specs, in any type) with config.json and the side files; the
// report for --json.
Json write_checkpoint(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors,
                      const SideFiles& side, const WriteOptions& options,
                      const CommonOptions& common);

}  // namespace mamba3::cli
