#include "cli/common.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "cli/terminal.h"
#include "core/check.h"
#include "core/quote.h"
#include "engine/checkpoint_files.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kBundledModel = "siso-9m";

std::string environment_name(const std::string& long_name) {
  std::string name = "MAMBA3_" + long_name;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  return name;
}

std::optional<std::int64_t> to_whole(const std::string& text) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc{} || parsed.ptr != end) return std::nullopt;
  return value;
}

// A file descriptor that is closed, unless it is stdin.
class InputFile {
 public:
  explicit InputFile(const std::string& path) : path_(path) {
    fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    check_input(fd_ >= 0, path, " cannot be opened (", std::strerror(errno),
                "); expected a readable file, or - for stdin; check the path");
  }
  ~InputFile() {
    if (fd_ > STDIN_FILENO) ::close(fd_);
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  // Zero at the end.
  std::size_t read(char* to, std::size_t most) {
    for (;;) {
      const ssize_t got = ::read(fd_, to, most);
      if (got >= 0) return static_cast<std::size_t>(got);
      check_interrupt();
      check_input(errno == EINTR, path_, " cannot be read (", std::strerror(errno),
                  "); expected a readable file, or - for stdin; check the path");
    }
  }

 private:
  std::string path_;
  int fd_ = -1;
};

// Beside an installed binary, else in the source tree that it was built from.
std::vector<fs::path> bundled_candidates() {
  std::vector<fs::path> folders;
  std::error_code ec;
  const fs::path executable = fs::read_symlink("/proc/self/exe", ec);
  if (!ec) folders.push_back(executable.parent_path() / MAMBA3_MODEL_DIR_INSTALL);
  folders.emplace_back(MAMBA3_MODEL_DIR_SOURCE);
  for (fs::path& folder : folders) folder = (folder / kBundledModel).lexically_normal();
  return folders;
}

}  // namespace

void add_common_options(CLI::App& app, CommonOptions& options) {
  const char* group = "Common options";
  app.add_option("-m,--model", options.model,
                 "folder with config.json, weights and tokenizer.json (default: the bundled model)")
      ->type_name("PATH")
      ->group(group);
  app.add_option("--tokenizer", options.tokenizer,
                 "tokenizer.json or tiktoken rank file, when it is not in the model's folder")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--device", options.device, "auto, cpu or cuda[:N]")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  app.add_option("--dtype", options.dtype,
                 "auto, fp32 (exact) or bf16 (inputs of every linear rounded); auto: as the "
                 "weights are stored")
      ->type_name("NAME")
      ->check(one_of({"auto", "fp32", "bf16"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("-t,--threads", options.threads, "0: one per processor")
      ->type_name("N")
      ->check(whole_number(0, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("-s,--seed", options.seed, "of random numbers (default: a new one each time)")
      ->type_name("N")
      ->check(whole_number(0))
      ->group(group);
  app.add_option("--a-activation", options.a_activation,
                 "auto, heavy-tail or softplus; auto: what the file records, else heavy-tail")
      ->type_name("NAME")
      ->check(one_of({"auto", "heavy-tail", "softplus"}))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--strict", options.strict, "refuse weights that hold NaN or infinity")
      ->group(group);
  app.add_flag("--json", options.json, "results as JSON on stdout")->group(group);
  app.add_flag("-q,--quiet", options.quiet, "no messages, no progress")->group(group);
  app.add_flag("-v,--verbose", options.verbose, "more messages, timings")->group(group);
}

void finish_options(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const auto& names = option->get_lnames();
    if (names.empty() || names[0] == "help" || names[0] == "version") continue;
    option->envname(environment_name(names[0]));
    if (option->get_multi_option_policy() == CLI::MultiOptionPolicy::Throw) option->take_last();
  }
}

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  const std::string expected = most == INT64_MAX ? str("a whole number from ", least)
                                                 : str("a whole number from ", least, " to ", most);
  return CLI::Validator(
      [=](std::string& text) {
        const auto value = to_whole(text);
        if (value && *value >= least && *value <= most) return std::string();
        return str("found '", text, "'; expected ", expected);
      },
      "");
}

CLI::Validator number(double least, double most) {
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const char* end = text.data() + text.size();
        const auto parsed = std::from_chars(text.data(), end, value);
        const bool ok = parsed.ec == std::errc{} && parsed.ptr == end && std::isfinite(value) &&
                        value >= least && value <= most;
        if (ok) return std::string();
        return str("found '", text, "'; expected a number from ", least, " to ", most);
      },
      "");
}

CLI::Validator one_of(const std::vector<std::string>& names) {
  return CLI::Validator(
      [=](std::string& text) {
        if (std::find(names.begin(), names.end(), text) != names.end()) return std::string();
        std::string list;
        for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
        return str("found '", text, "'; expected one of ", list);
      },
      "");
}

std::vector<std::int64_t> parse_numbers(const std::string& option, const std::string& text,
                                        std::int64_t least) {
  std::vector<std::int64_t> numbers;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::size_t first = begin, last = end;
    while (first < last && text[first] == ' ') ++first;
    while (last > first && text[last - 1] == ' ') --last;
    const std::string part = text.substr(first, last - first);
    const auto value = to_whole(part);
    if (!value || *value < least || end + 1 == text.size()) {
      fail(ErrorCode::kUsage, option, " has '", part, "' at character ", begin,
           "; expected whole numbers from ", least, " separated by commas; correct the option");
    }
    numbers.push_back(*value);
    begin = end + 1;
  }
  return numbers;
}

void check_device(const CommonOptions& options) {
  const std::string& name = options.device;
  if (name == "auto" || name == "cpu") return;
  const bool numbered = name.starts_with("cuda:") && to_whole(name.substr(5)).value_or(-1) >= 0;
  if (name == "cuda" || numbered) {
    fail(ErrorCode::kUnavailable, "--device ", name,
         " was asked for, but this build has no GPU backend; expected auto or cpu; leave --device "
         "out");
  }
  fail(ErrorCode::kUsage, "--device is '", name,
       "'; expected auto, cpu, cuda or cuda:N; correct the option");
}

Context make_context(const CommonOptions& options) {
  check_device(options);
  ContextOptions context;
  context.threads = options.threads;
  context.seed = options.seed.value_or(0);
  context.log = [quiet = options.quiet, verbose = options.verbose](LogLevel level,
                                                                   const std::string& text) {
    if (quiet || (level == LogLevel::kDebug && !verbose)) return;
    message((level == LogLevel::kWarning ? "mamba3: warning: " : "mamba3: ") + text);
  };
  return Context(std::move(context));
}

LoadOptions load_options(const CommonOptions& options) {
  LoadOptions load;
  load.tokenizer = options.tokenizer;
  load.strict = options.strict;
  if (options.dtype == "fp32") load.compute = ComputeDType::kF32;
  if (options.dtype == "bf16") load.compute = ComputeDType::kBf16;
  if (options.a_activation == "heavy-tail") load.a_activation = AActivation::kHeavyTail;
  if (options.a_activation == "softplus") load.a_activation = AActivation::kSoftplus;
  return load;
}

fs::path model_folder(const CommonOptions& options) {
  if (!options.model.empty()) return options.model;
  std::string tried;
  for (const fs::path& folder : bundled_candidates()) {
    std::error_code ec;
    if (fs::exists(folder / "config.json", ec)) return folder;
    tried += (tried.empty() ? "" : ", ") + folder.string();
  }
  fail(ErrorCode::kBadInput, "no model was named and the bundled one is not at ", tried,
       "; expected a folder with config.json and weights; name one with -m");
}

LoadedModel load_model(const CommonOptions& options, Context& ctx) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  loaded.checkpoint = load_checkpoint(model_folder(options), load_options(options), ctx);
  loaded.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  check_interrupt();
  return loaded;
}

const Tokenizer& need_tokenizer(const Checkpoint& checkpoint) {
  check_input(checkpoint.tokenizer != nullptr,
              "the model's folder has no tokenizer.json; expected one to turn text into ids; name "
              "one with --tokenizer, or give ids instead of text");
  return *checkpoint.tokenizer;
}

std::shared_ptr<const Tokenizer> load_tokenizer(const CommonOptions& options) {
  fs::path folder;
  if (options.tokenizer.empty()) folder = model_folder(options);
  auto tokenizer = find_tokenizer(folder, options.tokenizer);
  check_input(tokenizer != nullptr, quote(folder.string()),
              " has no tokenizer.json or tokenizer.model; expected one of them; name the file with "
              "--tokenizer");
  return tokenizer;
}

std::string read_text(const std::string& path) {
  constexpr std::size_t kBlockBytes = 1 << 20;
  InputFile file(path);
  std::string text;
  std::string block(kBlockBytes, '\0');
  while (const std::size_t got = file.read(block.data(), block.size())) text.append(block, 0, got);
  return text;
}

void write_out(std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(STDOUT_FILENO, text.data(), text.size());
    if (done >= 0) {
      text.remove_prefix(static_cast<std::size_t>(done));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EPIPE) throw ReaderGone{};
    fail(ErrorCode::kBadInput, "stdout cannot be written (", std::strerror(errno),
         "); expected room for the results; free space or send them elsewhere");
  }
}

void write_json(const Json& document) {
  write_out(document.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
  return text;
}

}  // namespace mamba3::cli
