#include <set>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/json.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

constexpr JsonLimits kIndexLimits{std::int64_t{32} << 20, 8, std::int64_t{1} << 18};
constexpr std::size_t kMostNamed = 10;  // in one message

std::string join_names(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size() && i < kMostNamed; ++i) {
    out += (i == 0 ? "" : ", ") + quote(names[i]);
  }
  if (names.size() > kMostNamed) out += ", and " + std::to_string(names.size() - kMostNamed);
  return out;
}

// A shard lies beside its index: a path could lead anywhere.
void check_shard_name(const std::string& shard, const std::string& origin) {
  const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  check_input(plain, origin, " names the shard ", quote(shard),
              "; expected the name of a file in the same folder; correct the index");
}

// Tensor name -> shard name.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& index_path) {
  const std::string origin = quote(index_path.string());
  const std::shared_ptr<const MappedFile> file = MappedFile::open(index_path);
  const nlohmann::json document = parse_json_limited(text_of(file->bytes()), origin, kIndexLimits);
  const bool has_map = document.is_object() && document.contains("weight_map") &&
                       document["weight_map"].is_object() && !document["weight_map"].empty();
  check_input(has_map, origin,
              " has no weight_map; expected an object from tensor names to shard names; correct "
              "the index or fetch it again");
  std::map<std::string, std::string> out;
  for (const auto& [name, shard] : document["weight_map"].items()) {
    check_input(shard.is_string(), origin, ": weight_map of ", quote(name), " is ",
                shard.type_name(), "; expected the name of a shard; correct the index");
    out[name] = shard.get<std::string>();
    check_shard_name(out[name], origin);
  }
  return out;
}

}  // namespace

TensorFile read_safetensors_index(const std::filesystem::path& index_path) {
  const std::string origin = quote(index_path.string());
  const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    if (!is_there(index_path.parent_path() / shard)) missing.push_back(shard);
  }
  check_input(missing.empty(), origin, " names ", shards.size(), " shards, ", missing.size(),
              " of them not there: ", join_names(missing),
              "; expected all beside the index; fetch the missing files");

  TensorFile out;
  for (const std::string& shard : shards) {
    TensorFile part = read_safetensors(index_path.parent_path() / shard);
    for (const auto& [name, tensor] : part.tensors) {
      const auto mapped = weight_map.find(name);
      if (mapped != weight_map.end() && mapped->second == shard) out.tensors[name] = tensor;
    }
    out.metadata.merge(part.metadata);
    out.files.insert(out.files.end(), part.files.begin(), part.files.end());
    out.copies.insert(out.copies.end(), part.copies.begin(), part.copies.end());
  }
  for (const auto& [name, shard] : weight_map) {
    if (!out.tensors.contains(name)) missing.push_back(name);
  }
  check_input(missing.empty(), origin, " places ", missing.size(),
              " tensors in shards that do not hold them: ", join_names(missing),
              "; expected every tensor in its shard; fetch the files again");
  return out;
}

TensorFile read_folder_weights(const std::filesystem::path& folder) {
  std::error_code ignored;
  check_input(std::filesystem::is_directory(folder, ignored), quote(folder.string()),
              " is not a folder; expected one with config.json and weights; check the path");
  if (is_there(folder / "model.safetensors")) {
    return read_safetensors(folder / "model.safetensors");
  }
  if (is_there(folder / "model.safetensors.index.json")) {
    return read_safetensors_index(folder / "model.safetensors.index.json");
  }
  check_input(is_there(folder / "pytorch_model.bin"), quote(folder.string()),
              " holds no weights; expected model.safetensors, model.safetensors.index.json or "
              "pytorch_model.bin; check the path or fetch the missing file");
  return read_torch_bin(folder / "pytorch_model.bin");
}

}  // namespace mamba3
