#include <cstring>
#include <nlohmann/json.hpp>
#include <span>

#include "core/check.h"
#include "core/quote.h"
#include "io/tensor_writer.h"

namespace mamba3 {
namespace {

using Metadata = std::map<std::string, std::string>;
using Tensors = std::span<const NamedTensor>;

constexpr std::size_t kAlignBytes = 64;
constexpr std::size_t kLengthBytes = 8;

std::string make_header(Tensors tensors, const Metadata& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    // ordered_json looks through all keys on each insertion by name; names are known to differ.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        name, nlohmann::ordered_json{{"dtype", dtype_name(tensor.dtype)},
                                     {"shape", tensor.shape},
                                     {"data_offsets", {begin, begin + tensor.bytes()}}});
    begin += tensor.bytes();
  }
  std::string text = header.dump();
  // The format lets a header end in spaces: the data then begins at a multiple of 64 bytes.
  text.resize(
      (kLengthBytes + text.size() + kAlignBytes - 1) / kAlignBytes * kAlignBytes - kLengthBytes,
      ' ');
  return text;
}

void write_file(AtomicFile& file, Tensors tensors, const Metadata& metadata,
                WriteProgress& progress) {
  std::string header;
  try {
    header = make_header(tensors, metadata);
  } catch (const nlohmann::json::exception&) {
    fail(ErrorCode::kBadInput,
         "the metadata of a safetensors file is not UTF-8; expected texts in "
         "UTF-8; correct them");
  }
  const std::uint64_t header_bytes = header.size();
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(header);
  for (const auto& [name, tensor] : tensors) write_tensor_data(file, data_of(tensor), progress);
}

std::int64_t all_bytes(Tensors tensors) {
  std::int64_t sum = 0;
  for (const NamedTensor& each : tensors) sum += each.tensor.bytes();
  return sum;
}

// Consecutive tensors whose file, header included, is no larger than shard_bytes; at least one.
std::vector<Tensors> plan_shards(Tensors tensors, const Metadata& metadata,
                                 std::int64_t shard_bytes) {
  // More than a tensor's or the file's own share of the header ever takes (a name can be written
  // six bytes for one).
  constexpr std::int64_t kEntryBytes = 640;
  std::int64_t fixed_bytes = 128;
  for (const auto& [key, value] : metadata) {
    fixed_bytes += 6 * static_cast<std::int64_t>(key.size() + value.size()) + 16;
  }
  std::vector<Tensors> shards;
  std::size_t begin = 0;
  std::int64_t used_bytes = fixed_bytes;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::int64_t bytes = tensors[i].tensor.bytes() + kEntryBytes +
                               6 * static_cast<std::int64_t>(tensors[i].name.size());
    if (i > begin && used_bytes + bytes > shard_bytes) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      used_bytes = fixed_bytes;
    }
    used_bytes += bytes;
  }
  shards.push_back(tensors.subspan(begin));
  return shards;
}

std::string shard_name(std::size_t index, std::size_t count) {
  const auto five_digits = [](std::size_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return "model-" + five_digits(index + 1) + "-of-" + five_digits(count) + ".safetensors";
}

// All files are complete before the first gets its name, the index last: an interrupted write
// changes nothing that a reader sees.
void write_shards(const std::filesystem::path& folder, const std::vector<Tensors>& shards,
                  const Metadata& metadata, WriteProgress& progress, std::int64_t total_bytes) {
  std::vector<std::unique_ptr<AtomicFile>> files;
  nlohmann::json weight_map = nlohmann::json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    files.push_back(std::make_unique<AtomicFile>(folder / name));
    write_file(*files.back(), shards[i], metadata, progress);
    files.back()->finish();
    for (const NamedTensor& each : shards[i]) weight_map[each.name] = name;
  }
  const nlohmann::json index{{"metadata", {{"total_size", total_bytes}}},
                             {"weight_map", std::move(weight_map)}};
  AtomicFile index_file(folder / "model.safetensors.index.json");
  index_file.write(index.dump(2) + "\n");
  index_file.finish();
  for (const std::unique_ptr<AtomicFile>& file : files) file->commit();
  index_file.commit();
}

// Weights of an earlier write that a reader would take in place of the new ones.
void remove_stale(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove(path, error);
  check_input(!error, "cannot remove ", quote(path.string()), ": ", error.message(),
              "; expected to replace it, since it hides the new weights; remove it");
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const Progress& progress) {
  check_writable(tensors);
  WriteProgress counter(progress, all_bytes(tensors));
  AtomicFile file(path);
  write_file(file, tensors, metadata, counter);
  file.commit();
}

void write_safetensors_folder(const std::filesystem::path& folder,
                              const std::vector<NamedTensor>& tensors,
                              const std::map<std::string, std::string>& metadata,
                              std::int64_t shard_bytes, const Progress& progress) {
  check_input(shard_bytes > 0, "the size of a shard is ", shard_bytes,
              " bytes; expected at least 1; choose another");
  const std::vector<Tensors> shards = plan_shards(tensors, metadata, shard_bytes);
  if (shards.size() == 1) {
    write_safetensors(folder / "model.safetensors", tensors, metadata, progress);
    remove_stale(folder / "model.safetensors.index.json");
    return;
  }
  check_writable(tensors);
  const std::int64_t total_bytes = all_bytes(tensors);
  WriteProgress counter(progress, total_bytes);
  write_shards(folder, shards, metadata, counter, total_bytes);
  remove_stale(folder / "model.safetensors");
}

}  // namespace mamba3
