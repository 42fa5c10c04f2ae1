// Named tensors read from a checkpoint, whatever its format, and the writers.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/mapped_file.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// The tensors point into `files` (or into `copies`, for the few that a file stores misaligned or
// non-contiguous), so they live as long as this object.
struct TensorFile {
  std::map<std::string, TensorRef> tensors;
  std::map<std::string, std::string> metadata;  // safetensors' __metadata__
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<std::shared_ptr<std::byte[]>> copies;
};

// safetensors: one file, or a model.safetensors.index.json with its shards beside it.
TensorFile read_safetensors(const std::filesystem::path& path);
TensorFile read_safetensors_index(const std::filesystem::path& index_path);
// The package's pytorch_model.bin: a stored zip with a restricted pickle. Nothing is executed.
TensorFile read_torch_bin(const std::filesystem::path& path);
// The same from a file that is already mapped.
TensorFile parse_safetensors(const std::shared_ptr<const MappedFile>& file);
TensorFile parse_torch_bin(const std::shared_ptr<const MappedFile>& file);
// The weights in a folder: model.safetensors, model.safetensors.index.json or pytorch_model.bin, in
// this order.
TensorFile read_folder_weights(const std::filesystem::path& folder);

struct NamedTensor {
  std::string name;
  TensorRef tensor;
};
using Progress = std::function<void(std::int64_t done_bytes, std::int64_t all_bytes)>;

// Written aside, synced, renamed: an interrupted write leaves no half file. Tensors are written in
// the given order.
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const Progress& progress = {});
// Splits into shards of at most shard_bytes (one tensor is never split) with an index; one file
// when all fit. `folder` gets model.safetensors or model-00001-of-0000N.safetensors +
// model.safetensors.index.json.
void write_safetensors_folder(const std::filesystem::path& folder,
                              const std::vector<NamedTensor>& tensors,
                              const std::map<std::string, std::string>& metadata,
                              std::int64_t shard_bytes, const Progress& progress = {});
// What torch.load(weights_only=True) and the package read back. Tensors with the same data pointer
// share a storage.
void write_torch_bin(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                     const Progress& progress = {});

}  // namespace mamba3
