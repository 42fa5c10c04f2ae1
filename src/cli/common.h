// What the commands share: the common options, the model they ask for, results.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_stream.h"
#include "mamba3/context.h"
#include "mamba3/engine.h"

namespace mamba3::cli {

using Json = nlohmann::ordered_json;

struct CommonOptions {
  std::string model;  // empty: the bundled one
  std::string tokenizer;
  std::string device = "auto";
  std::string dtype = "auto";
  std::string a_activation = "auto";
  int threads = 0;
  std::optional<std::uint64_t> seed;
  bool strict = false;
  bool same_bits = false;
  bool json = false;
  bool quiet = false;
  bool verbose = false;
};

// Refuses what this build cannot do with exit code 3, and unknown names with 2.
Device choose_device(const CommonOptions& options);
Context make_context(const CommonOptions& options, Device device);
// The same with another place for what is logged.
Context make_context(const CommonOptions& options, Device device, LogCallback log);
LoadOptions load_options(const CommonOptions& options);
// -m, else the bundled model beside the executable or in the source tree.
std::filesystem::path model_folder(const CommonOptions& options);

struct LoadedModel {
  Checkpoint checkpoint;
  double load_s = 0;
};
// `batch`: sequences that will be decoded at once, which a GPU must have room for.
LoadedModel load_model(const CommonOptions& options, Context& ctx, std::int64_t batch = 1);
// Refuses a checkpoint that came without one.
const Tokenizer& need_tokenizer(const Checkpoint& checkpoint);
// The tokenizer alone: --tokenizer, else the one in the model's folder.
std::shared_ptr<const Tokenizer> load_tokenizer(const CommonOptions& options);

// A file, unpacked when its name ends in .xz, or stdin for "-".
std::unique_ptr<ByteStream> open_input(const std::string& path);
// The whole of a file as it is, or of stdin for "-".
std::string read_text(const std::string& path);

// The reader of stdout has gone: nothing is wrong, but there is no more to do.
struct ReaderGone {};
// From now on there is: a file to write, or an exit code that answers. What nobody reads is
// dropped.
void go_on_without_reader();
// Unbuffered. Throws ReaderGone, or an Error when the results cannot be written.
void write_out(std::string_view text);
// On one line, whatever bytes its strings hold: ill-formed UTF-8 becomes U+FFFD.
void write_json(const Json& document);

// Refuses, before any work, a file to write in a folder that is not there or cannot be written.
void check_place(const std::string& option, const std::string& path);

// "12.3 MB"
std::string human_bytes(double bytes);

}  // namespace mamba3::cli
